"""Reader of Parquet files by pyarrow, a few rows at a time."""

import io

import numpy as np

from hogwild.data import class_names, files, tables
from hogwild.data.files import excerpt, place
from hogwild.errors import UserError


def read(source, file, asked=(), known=None):
    """Chunks of an open file, zeros dropped. asked: columns declared as categories; known: the Schema of a model."""
    import pyarrow as pa
    from pyarrow import parquet
    try:
        table = parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()), page_checksum_verification=True)
        kinds = [_kind(column.type) for column in table.schema_arrow]
        if len(kinds) < 2:
            raise UserError(f"{place(source.path)}: has {len(kinds)} columns, needed a label and at least one feature")
        found = tables.columns_of(source, table.schema_arrow.names, kinds, asked, known, lambda k: kinds[k] == "number")
        used = [*found.numbers, *found.texts, *([] if found.label is None else [found.label])]
        names, start = [table.schema_arrow.names[k] for k in used], 0
        step = max(files.CHUNK_BYTES // (8 * len(kinds)), 1)
        for batch in table.iter_batches(step, columns=names):
            batch = pa.Table.from_batches([batch]).select(names)
            if batch.num_rows:
                yield tables.chunk(source, found, *_converted(source, found, batch, start))
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place(source.path)}: truncated, corrupt or no Parquet file ({excerpt(error)}); write it again"
                        ) from None
    tables.close(source, found)


def _kind(type) -> str:
    import pyarrow as pa
    kinds = pa.types
    if kinds.is_dictionary(type):
        return _kind(type.value_type)
    if kinds.is_integer(type) or kinds.is_floating(type) or kinds.is_decimal(type) or kinds.is_boolean(type):
        return "number"
    text = kinds.is_string(type) or kinds.is_large_string(type) or kinds.is_string_view(type)
    return "text" if text else f"values of type {type}"


def _converted(source, found, batch, start):
    """(labels or None, numbers, texts) as `tables.chunk` wants them. start: number of the first row, from 0."""
    import pyarrow as pa
    from pyarrow import compute
    for column, name in zip(batch.columns, batch.column_names, strict=True):
        if column.null_count:
            row = start + int(np.flatnonzero(compute.is_null(column.combine_chunks()).to_numpy(zero_copy_only=False))[0])
            raise UserError(f"{place(source.path)}, row {row + 1}, column {name!r}: needed a value, this one is missing; "
                            "fill it or drop the row")
    numbers = np.empty((batch.num_rows, len(found.numbers)), np.float32)
    with np.errstate(over="ignore"):
        for i in range(numbers.shape[1]):
            numbers[:, i] = _numbers(batch.column(i))
    bad = np.argwhere(~np.isfinite(numbers))
    if bad.size:
        row, i = bad[0].tolist()
        raise UserError(f"{place(source.path)}, row {start + row + 1}, column {batch.column_names[i]!r}: got "
                        f"{batch.column(i)[row]}, needed a finite number within float32's range; correct or scale it")
    texts = [_text(source, found, column, batch.column(i), start)
             for i, column in enumerate(found.texts, len(found.numbers))]
    if found.label is None:
        return None, numbers, texts
    label = batch.column(-1)
    if _kind(label.type) == "text":
        labels = tables.labels(label.cast(pa.string()))
    else:
        labels = class_names.from_array(_numbers(label))
    if not tables.good(labels):
        row = next(row for row in range(len(labels)) if not tables.good(labels[row:row + 1]))
        where = f"{place(source.path)}, row {start + row + 1}, {found.name(found.label)}"
        raise UserError(f"{where}: got {label[row]}, needed a label that is there and finite; fill it or drop the row")
    return labels, numbers, texts


def _numbers(column):
    import pyarrow as pa
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy()
    return column.cast(pa.float64()).to_numpy()


def _text(source, found, column, texts, start):
    """(codes, values) of a column of categories."""
    import pyarrow as pa
    codes, values = tables.encoded(texts.cast(pa.string()))
    if column not in found.asked:
        why = tables.suspicious([values[k] for k in codes[:1000]]) if start == 0 else None
        if why:
            tables.refuse_text(source, found, column, why, max(values, key=len))
        lacking = [k for k, value in enumerate(values) if value.lower() in class_names.MISSING]
        if lacking:
            row = start + int(np.flatnonzero(np.isin(codes, lacking))[0])
            raise UserError(f"{place(source.path)}, row {row + 1}, {found.name(column)}: got {excerpt(values[lacking[0]])}, "
                            f"needed a value; {tables.COUNT_MISSING.format(found.option(column))}")
    return codes, values
