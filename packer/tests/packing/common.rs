//! What the packer's integration tests share: fixtures, scratch folders, and models with a fault put in.

use packer::emit::{Options, Report, pack};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The fixture models.
pub const MODELS: [&str; 4] = ["d2", "d3odd", "d1p1", "d4own"];

/// A file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The directory of fixture model `name`.
pub fn model(name: &str) -> PathBuf {
    fixture("dit").join(name)
}

/// An empty folder of the test's own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A copy of fixture model `name` in this folder, to be changed.
    pub fn copy_of(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_folder(&model(name), &to);
        to
    }

    /// Names of everything in the folder itself.
    pub fn entries(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Packs `model` under `config` into `output`.
pub fn pack_as(model: &Path, config: Option<&str>, output: &Path) -> packer::Result<Report> {
    let options = Options {
        model: model.to_owned(),
        q_config: config.map(str::to_owned),
        output: output.to_owned(),
        ..Default::default()
    };
    pack(&options, &mut |_| ())
}

/// A tensor as f32, whatever it was stored as.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// All tensors of the safetensors file at `path`.
pub fn load(path: &Path) -> BTreeMap<String, Dense> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let dense = |t: TensorView| {
        let values = match t.dtype() {
            Dtype::F32 => t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => {
                t.data().chunks_exact(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
            }
            Dtype::I64 => t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            other => panic!("{other:?}"),
        };
        Dense { shape: t.shape().to_vec(), values }
    };
    tensors.iter().map(|(name, t)| (name.to_owned(), dense(t))).collect()
}

/// All tensors of a component's folder, shards together.
pub fn load_component(folder: &Path) -> BTreeMap<String, Dense> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).flat_map(|f| load(&f)).collect()
}

/// Writes `tensors` to `path` as f32.
pub fn save(path: &Path, tensors: &BTreeMap<String, Dense>) {
    let bytes: BTreeMap<_, Vec<u8>> =
        tensors.iter().map(|(n, t)| (n, t.values.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = tensors.iter().map(|(n, t)| (n, TensorView::new(Dtype::F32, t.shape.clone(), &bytes[n]).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes the weights of the model at `model`, which are in one file.
pub fn edit_weights(model: &Path, component: &str, edit: impl FnOnce(&mut BTreeMap<String, Dense>)) {
    let file = model.join(component).join("diffusion_pytorch_model.safetensors");
    let mut tensors = load(&file);
    edit(&mut tensors);
    save(&file, &tensors);
}

/// Changes a JSON file.
pub fn edit_json(file: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(value.as_object_mut().unwrap());
    fs::write(file, value.to_string()).unwrap();
}
