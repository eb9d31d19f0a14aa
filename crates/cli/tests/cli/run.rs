//! Running the program as a user would.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An empty directory for one test.
pub fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// What a run of the program gave.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn finish(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub fn program(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquatint"));
    command.current_dir(dir).args(args);
    command
}

/// Runs the program, which must succeed without a word on standard error; gives its standard output.
pub fn works(dir: &Path, args: &[&str]) -> String {
    let ran = finish(&mut program(dir, args));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
    ran.out
}

/// The same, for output in JSON.
pub fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&works(dir, args)).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Every file below `dir` and its bytes.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        }
        let bytes = if path.is_file() { fs::read(&path).expect("a file") } else { Vec::new() };
        all.insert(path, bytes);
    }
    all
}

/// Asserts that `command` is refused with exit code 2 and one line with all of `words`, and changes nothing in `dir`.
pub fn refused(dir: &Path, command: &mut Command, words: &[&str]) {
    let before = files(dir);
    let ran = finish(command);
    let what = format!("{:?}: {:?}", command.get_args().collect::<Vec<_>>(), ran.err);
    assert_eq!(ran.code, Some(2), "{what}");
    assert!(ran.err.starts_with("error: ") && ran.err.ends_with('\n'), "{what}");
    assert_eq!(ran.err.lines().count(), 1, "{what}");
    assert!(!ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"), "{what}");
    for word in words {
        assert!(ran.err.contains(word), "{word:?} is not said by {what}");
    }
    assert_eq!(ran.out, "", "{what}");
    assert!(files(dir) == before, "files changed: {what}");
}

pub fn refuses(dir: &Path, args: &[&str], words: &[&str]) {
    refused(dir, &mut program(dir, args), words);
}

/// Writes tensors of f32 values.
pub fn save(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes);
    let views = views.map(|(t, b)| (t.0, TensorView::new(Dtype::F32, t.1.to_vec(), b).expect("a tensor")));
    fs::write(path, safetensors::serialize(views, None).expect("tensors")).expect("it is written");
}

/// Axes and values of a tensor.
pub fn load(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let values = match t.dtype() {
        Dtype::F32 => t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::I64 => t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
        other => panic!("{name} is {other:?}"),
    };
    (t.shape().to_vec(), values)
}

/// `|a - b| / |b|`.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// Width, height and the `parameters` text of a PNG file.
pub fn picture(path: &Path) -> (u32, u32, String) {
    let file = std::io::BufReader::new(fs::File::open(path).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG header");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut pixels).expect("pixels");
    let info = reader.info();
    let texts: Vec<_> = info.uncompressed_latin1_text.iter().filter(|t| t.keyword == "parameters").collect();
    assert_eq!(texts.len(), 1, "one tEXt chunk `parameters`");
    (info.width, info.height, texts[0].text.clone())
}
