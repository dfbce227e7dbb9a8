"""How Numba compiles a function that only kernels call: it optimizes it, but makes no machine code of it.

By itself Numba makes machine code of each function, together with all that it calls, before it does so with the caller: of
what lies seven calls deep it is made seven times, and used once. That took a quarter of the time for a kernel with 120 such
parts.
"""

from llvmlite import binding
from numba import _dynfunc
from numba.core.caching import CompileResultCacheImpl
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, compile_result
from numba.core.compiler_machinery import register_pass
from numba.core.environment import lookup_environment
from numba.core.typed_passes import NativeLowering


class _Library(JITCodeLibrary):
    """Optimized functions, to be linked into other libraries."""

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    @classmethod
    def of(cls, codegen, name, bitcode):
        library = cls(codegen, name)
        library._final_module = library._shared_module = binding.parse_bitcode(bitcode)
        library._finalized = True
        return library


def _name(library, fndesc, environment):
    """What stands for the machine code where Numba looks for the library of a function. Not to be called."""
    return _dynfunc.make_function(fndesc.lookup_module(), fndesc.qualname, "", 0, environment, (library,))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    _name = "lowering_of_a_part"

    def run_pass(self, state):
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        super().run_pass(state)
        lowered = state["cr"]
        state["cr"] = lowered = lowered._replace(cfunc=_name(state.library, lowered.fndesc, lowered.env))
        state.targetctx.insert_user_function(lowered.cfunc, lowered.fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _WholeLowering(NativeLowering):
    _name = "lowering_of_a_kernel"

    def run_pass(self, state):
        super().run_pass(state)
        library = state.library
        for name in (each.name for each in library._final_module.global_variables):
            environment = lookup_environment(name) if name.startswith("_ZN08NumbaEnv") else None
            if environment is not None:  # a part's, without which it could not print, nor raise what is made as it runs
                library.codegen.set_env(name, environment)
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
Part, Whole = _with(_Lowering), _with(_WholeLowering)


class PartCacheImpl(CompileResultCacheImpl):
    """What of them is cached on disk: LLVM's bitcode in place of machine code."""

    def get_filename_base(self, fullname, abiflags):
        return f"part-{super().get_filename_base(fullname, abiflags)}"

    def reduce(self, cres):
        cres.fndesc.typemap = cres.fndesc.calltypes = None  # as Numba does: they cannot all be pickled
        library = cres.library
        return (library.name, library._get_module_for_linking().as_bitcode(), cres.fndesc, cres.environment, cres.signature,
                cres.reload_init, tuple(cres._find_referenced_environments()))

    def rebuild(self, target_context, payload):
        name, bitcode, fndesc, environment, signature, reload_init, environments = payload
        for initialize in reload_init:
            initialize()
        library = _Library.of(target_context.codegen(), name, bitcode)
        library._reload_init.update(reload_init)
        return compile_result(
            typing_context=target_context.typing_context, target_context=target_context, library=library, fndesc=fndesc,
            entry_point=_name(library, fndesc, environment), environment=environment, signature=signature, objectmode=False,
            lifted=(), reload_init=reload_init, referenced_envs=environments)
