"""How Numba compiles a function that only kernels call: to LLVM's bitcode, which is optimized and translated to machine code
once, in each kernel that calls it.

By itself Numba optimizes each function together with all that it calls, and makes machine code of it, before it does so with
the caller: what lies seven calls deep is optimized seven times, and used once.
"""

from llvmlite import binding
from numba import _dynfunc
from numba.core.caching import CompileResultCacheImpl
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, compile_result
from numba.core.compiler_machinery import register_pass
from numba.core.environment import lookup_environment
from numba.core.typed_passes import NativeLowering


class _BitcodeLibrary(JITCodeLibrary):
    """Functions to be linked into other libraries."""

    _whole = None

    def finalize(self):
        self._finalized = True

    def own_module(self):
        return super()._get_module_for_linking()

    def _get_module_for_linking(self):
        """With all that it calls: for the disk, and for a library that is none of ours."""
        if self._whole is None:
            self._whole = self.own_module().clone()
            _link(self._whole, _called(self._linking_libraries))
        return self._whole

    @property
    def has_dynamic_globals(self):
        return any(each.name.startswith("numba.dynamic.globals") for each in self._get_module_for_linking().global_variables)

    @classmethod
    def of(cls, codegen, name, bitcode):
        library = cls(codegen, name)
        library._final_module = library._shared_module = library._whole = binding.parse_bitcode(bitcode)
        library._finalized = True
        return library


class _EntryLibrary(JITCodeLibrary):
    """A kernel, and all that it calls."""

    def finalize(self):
        libraries, self._linking_libraries = _called(self._linking_libraries), []
        for library in libraries:
            self._reload_init.update(library._reload_init)
        _link(self._final_module, libraries)
        super().finalize()


def _called(libraries):
    """These, and those that they call, each once, behind all that call it: LLVM links a function only where what it has
    linked before refers to it."""
    found, seen = [], set()

    def visit(library):
        if library not in seen:
            seen.add(library)
            for each in library._linking_libraries if isinstance(library, _BitcodeLibrary) else ():
                visit(each)
            found.append(library)
    for library in libraries:
        visit(library)
    return found[::-1]


def _link(module, libraries):
    for library in libraries:
        own = library.own_module() if isinstance(library, _BitcodeLibrary) else library._get_module_for_linking()
        module.link_in(own, preserve=True)


def _environments(module):
    """(name, Numba's environment) of each function in the module that has one: what it raises or prints as it runs."""
    for name in (each.name for each in module.global_variables):
        environment = lookup_environment(name) if name.startswith("_ZN08NumbaEnv") else None
        if environment is not None:
            yield name, environment


def _name(library, fndesc, environment):
    """What stands for the machine code where Numba looks for the library of a function. Not to be called."""
    return _dynfunc.make_function(fndesc.lookup_module(), fndesc.qualname, "", 0, environment, (library,))


@register_pass(mutates_CFG=True, analysis_only=False)
class _BitcodeLowering(NativeLowering):
    _name = "lowering_to_bitcode"

    def run_pass(self, state):
        state.library = _BitcodeLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        state["cr"] = lowered = lowered._replace(cfunc=_name(state.library, lowered.fndesc, lowered.env))
        state.targetctx.insert_user_function(lowered.cfunc, lowered.fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _EntryLowering(NativeLowering):
    _name = "lowering_of_a_kernel"

    def run_pass(self, state):
        state.library = _EntryLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        super().run_pass(state)
        for name, environment in _environments(state.library._final_module):  # its own, and those of what it calls
            state.library.codegen.set_env(name, environment)
        return True


def _with(lowering):
    """Numba's compiler, but for this pass."""
    class Compiler(CompilerBase):
        def define_pipelines(self):
            manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
            manager.passes = [(lowering if each is NativeLowering else each, what) for each, what in manager.passes]
            manager.finalize()
            return [manager]
    return Compiler


# The `pipeline_class` of a function that only kernels call, and of the kernel that Python calls.
BitcodeCompiler, EntryCompiler = _with(_BitcodeLowering), _with(_EntryLowering)


class BitcodeCacheImpl(CompileResultCacheImpl):
    """What of the former is cached on disk: LLVM's bitcode in place of machine code."""

    def get_filename_base(self, fullname, abiflags):
        return f"bitcode-{super().get_filename_base(fullname, abiflags)}"

    def reduce(self, cres):
        cres.fndesc.typemap = cres.fndesc.calltypes = None  # as Numba does: they cannot all be pickled
        module = cres.library._get_module_for_linking()
        environments = tuple(each for _, each in _environments(module) if each.can_cache())
        return (cres.library.name, module.as_bitcode(), cres.fndesc, cres.environment, cres.signature, cres.reload_init,
                environments)

    def rebuild(self, target_context, payload):
        name, bitcode, fndesc, environment, signature, reload_init, environments = payload
        for initialize in reload_init:
            initialize()
        library = _BitcodeLibrary.of(target_context.codegen(), name, bitcode)
        library._reload_init.update(reload_init)
        return compile_result(
            typing_context=target_context.typing_context, target_context=target_context, library=library, fndesc=fndesc,
            entry_point=_name(library, fndesc, environment), environment=environment, signature=signature, objectmode=False,
            lifted=(), reload_init=reload_init, referenced_envs=environments)
