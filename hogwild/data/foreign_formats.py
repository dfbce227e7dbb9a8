"""Names for files that are not read here, from how they begin, with what to do about them."""

import re

CONVERT = "convert it to svmlight text, CSV, Parquet or .npz"
ZIP = b"PK\x03\x04"
PARQUET = b"PAR1"
MAGIC = {  # how a file begins: (what it is, remedy)
    ZIP: ("a zip archive", "unzip it, or name it .npz if it is one"),
    PARQUET: ("a Parquet file", "name it .parquet"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it with zstd -d"),
    b"\x04\x22\x4d\x18": ("lz4-compressed", "unpack it with lz4 -d"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it with 7z x"),
    b"Rar!": ("a rar archive", "unpack it"),
    b"\x1f\x9d": ("compressed by compress", "unpack it with gzip -d"),
    b"\x93NUMPY": ("a .npy array", "save it with labels by hogwild.data.formats.save_npz(path, X, y)"),
    b"\x89HDF": ("an HDF5 file", CONVERT),
    b"\xd0\xcf\x11\xe0": ("an Excel (.xls) or other Office file", "save the sheet as CSV"),
    b"ARROW1": ("an Arrow (Feather) file", "write it as Parquet"),
    b"FEA1": ("a Feather file", "write it as Parquet"),
    b"ORC": ("an ORC file", "write it as Parquet"),
    b"Obj\x01": ("an Avro file", "write it as Parquet"),
    b"SQLite format 3\0": ("a SQLite database", "export the table as CSV"),
    b"MATLAB 5.0 MAT-file": ("a MATLAB file", "save it by hogwild.data.formats.save_npz(path, X, y)"),
    b"%PDF": ("a PDF document", CONVERT),
    b"\x89PNG": ("an image", CONVERT),
    b"\xff\xd8\xff": ("an image", CONVERT),
    b"%%MatrixMarket": ("a Matrix Market file", "save it with labels by hogwild.data.formats.save_npz(path, X, y)"),
}
UTF16 = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
TEXT = (  # (pattern of the beginning without blanks, what it is, remedy), of files that are to be svmlight text or CSV
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", UTF16),
    (rb"(?s:.)\0(?s:.)\0(?s:.)\0", "UTF-16 text", UTF16.replace("16", "16LE")),
    (rb"\0(?s:.)\0(?s:.)\0(?s:.)", "UTF-16 text", UTF16.replace("16", "16BE")),
    (rb"(?s:.{1,8}){\"(__metadata__|\w+\":{\"dtype)", "a safetensors file", "give the model first and the data after it"),
    (rb"\x80[\x02-\x05][\x95\x8c\x8a}\](cX.]", "a Python pickle", CONVERT),
    (rb"(?s:.{257})ustar", "a tar archive", "unpack it"),
    (rb"[{\[]\s*[\"{\[\]}\d-]", "JSON", CONVERT),
    (rb"(?i)(?:%[^\n]*\n\s*)*@(relation|attribute|data)\b", "an ARFF file", CONVERT),
    (rb"(?i)<(!doctype|html|head|body|\?xml|svg|!--)", "HTML or XML", "download the file itself, or " + CONVERT),
)
PAIRS = (  # the same of files that are to be svmlight text
    (rb"[^\s|:]*(?:[ \t]+[^\s|:]+)*[ \t]*\|[A-Za-z_]*(?::\S+)?[ \t]+[^\s|]", "a Vowpal Wabbit file",
     "write index:value after the label, with numbers as indices"),
    (rb"[^\s:]+[ \t]+\d+:[^\s:]+:[^\s:]+(\s|$)", "a libffm file (field:index:value)", "drop the fields: index:value"),
)


def name(head: bytes, patterns=()):
    """(what, remedy) of a file that begins with `head` and is none of ours; None if it may be one. patterns: as in TEXT."""
    for magic, found in MAGIC.items():
        if head.startswith(magic):
            if magic == ZIP and (b"xl/" in head or b"[Content_Types]" in head):
                return "an Excel (.xlsx) or other Office file", "save the sheet as CSV"
            return found
    return next(((what, remedy) for pattern, what, remedy in patterns if re.match(pattern, head.lstrip())), None)
