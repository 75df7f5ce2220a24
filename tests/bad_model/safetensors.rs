//! model.safetensors: the frame, the header, and how the header covers the data.

use super::model::{ModelDir, framed};
use super::{Case, Expect, case, open, refuse};
use Expect::{At, File, Tensor};

const FILE: &str = "model.safetensors";

/// The weights are exactly these bytes.
fn raw(label: &'static str, bytes: impl Into<Vec<u8>>, expect: Expect) -> Case {
    let bytes = bytes.into();
    case(label, move |model| model.write(FILE, &bytes), expect)
}

/// A header that is well framed, before `n_data` bytes.
fn header(label: &'static str, header: impl AsRef<[u8]>, n_data: usize, expect: Expect) -> Case {
    raw(label, framed(header, &vec![0; n_data]), expect)
}

/// A header that does not parse; `^` stands before the byte that the error names, and is no part of it.
fn unparsed(label: &'static str, marked: impl AsRef<[u8]>, part: &'static str) -> Case {
    let mut text = marked.as_ref().to_vec();
    let at = text.iter().position(|&byte| byte == b'^').expect("a marked byte");
    text.remove(at);
    header(label, text, 4, At(FILE, 8 + at as u64, part))
}

/// As [`unparsed`], a header of one tensor `t` with these fields.
fn entry(label: &'static str, marked: &str, part: &'static str) -> Case {
    unparsed(label, format!(r#"{{"t":{{{marked}}}}}"#), part)
}

fn with_length(length: u64, rest: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), rest].concat()
}

// rows 1, 2
#[test]
fn frames() {
    refuse(
        vec![
            raw("empty", [], File(FILE, "too short for a safetensors file: 0 bytes")),
            raw("seven bytes", [0; 7], File(FILE, "too short")),
            raw("no header", with_length(0, b""), At(FILE, 0, "header length 0")),
            raw("length 0", with_length(0, b"{}"), At(FILE, 0, "header length 0")),
            raw("length 1", with_length(1, b"{}"), At(FILE, 0, "header length 1")),
            raw("longer than the file", with_length(3, b"{}"), At(FILE, 0, "header length 3, must be 2 to 2")),
            raw("length 2^63", with_length(1 << 63, b"{}"), At(FILE, 0, "header length 9223372036854775808")),
            raw("length 2^64 - 1", with_length(u64::MAX, b"{}"), At(FILE, 0, "header length 18446744073709551615")),
            raw("over 16 MiB", framed(vec![b' '; (16 << 20) + 1], &[]), At(FILE, 0, "must be 2 to 16777216")),
        ],
        open,
    );
}

// row 1
#[cfg(unix)]
#[test]
fn what_is_no_regular_file() {
    use std::process::Command;
    let fifo = |model: &ModelDir| {
        model.remove(FILE);
        // Opening it would wait for a writer for ever.
        assert!(Command::new("mkfifo").arg(model.file(FILE)).status().expect("mkfifo runs").success());
    };
    let link_to_device = |model: &ModelDir| {
        model.remove(FILE);
        std::os::unix::fs::symlink("/dev/zero", model.file(FILE)).expect("a link");
    };
    let directory = |model: &ModelDir| {
        model.remove(FILE);
        std::fs::create_dir(model.file(FILE)).expect("a directory");
    };
    refuse(
        vec![
            case("FIFO", fifo, File(FILE, "not a regular file")),
            case("device", link_to_device, File(FILE, "not a regular file")),
            case("directory", directory, File(FILE, "not a regular file")),
        ],
        open,
    );
}

// rows 3, 4, 5
#[test]
fn headers_that_are_no_objects_of_tensors() {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_key = format!(r#"{{"t":{{"a^":{}1{}}}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let deep_shape = format!(r#"{{"t":{{"dtype":"F32","shape":^[{nested}]}}}}"#);
    let deep_metadata = format!(r#"{{"__metadata__":{{"a"^:{nested}}}}}"#);
    let one_string = format!("\"{}^\"", "a".repeat((16 << 20) - 2));
    refuse(
        vec![
            unparsed("not UTF-8", b"{\"t^\xFF\":1}", "not UTF-8"),
            unparsed("not JSON", "{\"t\"^=1}", "expected `:`"),
            unparsed("a list", "^[]", "expected an object of tensors"),
            unparsed("a number", "1^2", "expected an object of tensors"),
            unparsed("cut off", "{\"t\"^:", "EOF while parsing"),
            unparsed("trailing junk", "{} ^{}", "trailing characters"),
            unparsed("10^5 lists", format!("^{nested}"), "expected an object of tensors"),
            unparsed("10^5 objects", deep_key, "unknown key \"a\""),
            unparsed("10^5 lists as a shape", deep_shape, "tensor \"t\": invalid type: sequence"),
            unparsed("10^5 lists as metadata", deep_metadata, "invalid type: sequence, expected a string"),
            unparsed("one string of 16 MiB", one_string, "expected an object of tensors"),
            unparsed("metadata twice", r#"{"__metadata__":{},"__metadata__^":{}}"#, "stands twice"),
            unparsed("metadata key twice", r#"{"__metadata__":{"a":"","a":""^}}"#, "\"a\" stands twice"),
        ],
        open,
    );
}

// row 13
#[test]
fn too_many_tensors() {
    let tensors: Vec<String> =
        (0..65_537).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1)).collect();
    let model = ModelDir::llama();
    model.write(FILE, framed(format!("{{{}}}", tensors.join(",")), &vec![0; 65_537]));
    let error = open(&model).expect_err("over the cap").to_string();
    assert!(error.contains("more than 65536 tensors"), "{error}");
}

// rows 5, 6
#[test]
fn entries_that_are_no_tensors() {
    let offsets = |text: &str| format!(r#""dtype":"F32","shape":[1],"data_offsets":{text}"#);
    let many = format!(r#""shape":[{}1^,{}1]"#, "1,".repeat(8), "1,".repeat(1_000_000));
    let twice = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t^":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    refuse(
        vec![
            entry("offsets of length 0", &offsets("[^]"), "tensor \"t\": invalid length 0"),
            entry("offsets of length 1", &offsets("[0^]"), "tensor \"t\": invalid length 1"),
            entry("offsets of length 3", &offsets("[0,4,^8]"), "tensor \"t\": "),
            entry("negative offset", &offsets("[-^4,0]"), "tensor \"t\": invalid value: integer `-4`"),
            entry("a float", &offsets("[0,4.^0]"), "tensor \"t\": invalid type: floating point `4.0`"),
            entry("past 2^64", &offsets("[0,1844674407370955161^6]"), "tensor \"t\": "),
            entry("end before start", &offsets("[4,0]^"), "tensor \"t\": data_offsets end 0 before 4"),
            entry("no offsets", r#""dtype":"F32","shape":[1]^"#, "tensor \"t\": no \"data_offsets\""),
            entry("no dtype", r#""shape":[1],"data_offsets":[0,4]^"#, "tensor \"t\": no \"dtype\""),
            entry("no shape", r#""dtype":"F32","data_offsets":[0,4]^"#, "tensor \"t\": no \"shape\""),
            entry("dtype twice", r#""dtype":"F32","dtype":"F16"^"#, "tensor \"t\": \"dtype\" stands twice"),
            entry("shape twice", r#""shape":[1],"shape":[1]^"#, "tensor \"t\": \"shape\" stands twice"),
            entry("unknown key", r#""strides^":[1]"#, "tensor \"t\": unknown key \"strides\""),
            entry("negative shape", r#""shape":[-^1]"#, "tensor \"t\": invalid value: integer `-1`"),
            entry("10^6 dimensions", &many, "tensor \"t\": shape has more than 8 dimensions"),
            unparsed("name twice", twice, "\"t\" stands twice"),
        ],
        open,
    );
}

// rows 8, 9, 10, 11
#[test]
fn sizes_that_do_not_fit() {
    let sized = |label, dtype: &str, shape: &str, n_data: usize, part| {
        let fields = format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":[0,{n_data}]"#);
        header(label, format!(r#"{{"t":{{{fields}}}}}"#), n_data, Tensor(FILE, "t", part))
    };
    refuse(
        vec![
            // The product is 4 modulo 2^64.
            sized("product wraps", "F32", "[4194305,4194305,211106198978564]", 16, "overflows"),
            sized("bytes wrap", "F64", "[2305843009213693952]", 0, "overflows"),
            sized("bits wrap", "U8", "[2305843009213693952]", 0, "overflows"),
            sized("too few bytes", "F32", "[2]", 4, "shape [2] of F32 needs 8 bytes, data_offsets give 4"),
            sized("too many bytes", "F16", "[2]", 8, "shape [2] of F16 needs 4 bytes, data_offsets give 8"),
            sized("a scalar of no bytes", "F32", "[]", 0, "shape [] of F32 needs 4 bytes"),
            sized("half a byte", "F4", "[1]", 1, "shape [1] of F4 ends inside a byte"),
            sized("three quarters", "F6_E2M3", "[2,3]", 5, "ends inside a byte"),
            sized("no elements", "F32", "[0]", 0, "shape [0] has no elements"),
            sized("no elements among many", "F32", "[4,0,2]", 0, "has no elements"),
            sized("unknown dtype", "F99", "[1]", 4, "unknown dtype \"F99\""),
            sized("dtype in small letters", "f32", "[1]", 4, "unknown dtype \"f32\""),
        ],
        open,
    );
}

// row 7
#[test]
fn data_that_is_not_covered_once() {
    let u8s = |ranges: &[[u64; 2]]| {
        let one = |(i, [begin, end]): (usize, &[u64; 2])| {
            format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        };
        format!("{{{}}}", ranges.iter().enumerate().map(one).collect::<Vec<_>>().join(","))
    };
    let covered = |label, ranges: &[[u64; 2]], n_data, expect| header(label, u8s(ranges), n_data, expect);
    let far = (1 << 60) - 4;
    refuse(
        vec![
            covered("overlap", &[[0, 4], [3, 8]], 8, Tensor(FILE, "t1", "overlaps the tensor before it")),
            covered("same data", &[[0, 4], [0, 4]], 4, Tensor(FILE, "t1", "overlaps")),
            covered("hole", &[[0, 4], [5, 8]], 8, Tensor(FILE, "t1", "leaves a hole before it")),
            covered("hole at the start", &[[1, 4]], 4, Tensor(FILE, "t0", "leaves a hole")),
            covered("past the file", &[[0, 4], [4, 9]], 8, Tensor(FILE, "t1", "data ends at 9, the file's data at 8")),
            covered("far past the file", &[[0, far]], 8, Tensor(FILE, "t0", "the file's data at 8")),
            covered("bytes after", &[[0, 4], [4, 8]], 9, File(FILE, "1 bytes after the last tensor")),
            header("no tensors", "{}", 3, File(FILE, "3 bytes after the last tensor")),
        ],
        open,
    );
}

// row 15
#[test]
fn a_file_that_is_cut_after_it_was_opened() {
    let model = ModelDir::llama();
    let checkpoint = open(&model).expect("a right model");
    let bytes = model.read(FILE);
    let file = std::fs::OpenOptions::new().write(true).open(model.file(FILE)).expect("the file is there");
    file.set_len(bytes.len() as u64 - 1).expect("it can be cut");
    let error = checkpoint.read("model.layers.0.mlp.down_proj.weight").expect_err("its last byte is gone");
    let offset = (bytes.len() - 4 * 16 * 24) as u64;
    At(FILE, offset, "the file ends early").check(model.path(), &error).expect("the error of the test");
}

#[test]
fn a_file_that_is_written_to_while_it_is_read() {
    let model = ModelDir::llama();
    let checkpoint = open(&model).expect("a right model");
    checkpoint.check_unchanged().expect("nothing was written");
    // Another file of the same name leaves the open one whole.
    let bytes = model.read(FILE);
    let moved = model.file("moved");
    std::fs::rename(model.file(FILE), &moved).expect("it can be moved");
    model.write(FILE, [&bytes[..], b"more"].concat());
    checkpoint.check_unchanged().expect("the open file was not written to");
    let file = std::fs::OpenOptions::new().write(true).open(&moved).expect("the file is there");
    // Two writes may fall into one tick of the file system's clock.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
    file.set_modified(later).expect("times can be set");
    let error = checkpoint.check_unchanged().expect_err("it was written to");
    File(FILE, "written to while it was read").check(model.path(), &error).expect("the error of the test");
}

#[test]
fn an_element_that_is_not_finite() {
    const NAME: &str = "model.layers.0.mlp.down_proj.weight";
    for (bits, part) in [
        (f32::NAN.to_bits(), "element [15, 23] is NaN"),
        (f32::INFINITY.to_bits(), "element [15, 23] is inf"),
        (f32::NEG_INFINITY.to_bits(), "element [15, 23] is -inf"),
    ] {
        let model = ModelDir::llama();
        let mut bytes = model.read(FILE);
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&bits.to_le_bytes());
        model.write(FILE, bytes);
        let mut checkpoint = open(&model).expect("opening reads no weight");
        let error = checkpoint.read_f32(NAME).expect_err("it is refused");
        Expect::Tensor(FILE, NAME, part).check(model.path(), &error).expect("the error of the test");
        checkpoint.allow_non_finite();
        assert_eq!(checkpoint.read_f32(NAME).expect("it is allowed").last().map(|x| x.to_bits()), Some(bits));
    }
}
