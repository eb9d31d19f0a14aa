//! Genuine model directories with what diffusers computed of them.

use aquatint::raw::format::Packed;
use packer::emit::Options;
use safetensors::SafeTensors;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Packs a model directory into a temporary file and maps it.
pub fn pack(model: &Path, config: &str, vae: Option<&str>) -> Packed<aquatint::raw::mmap::FileBytes> {
    let (model, q_config) = (model.into(), Some(config.into()));
    pack_as(Options { model, q_config, vae_q_config: vae.map(Into::into), ..Default::default() })
}

/// The same with all options; the output is a temporary file whatever they say.
pub fn pack_as(options: Options) -> Packed<aquatint::raw::mmap::FileBytes> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aquatint-pack-{}-{}.aqt", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let output = std::env::temp_dir().join(name);
    let options = Options { output: output.clone(), ..options };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let map = aquatint::raw::mmap::open(&output).expect("the packed file maps");
    std::fs::remove_file(&output).expect("a mapped file can be unlinked");
    Packed::new(map).expect("the packed file opens")
}

/// The same with every layer quantized as `spec` says: of itself, a specification leaves out layers of few inputs, which
/// tiny models have most of.
pub fn pack_everywhere(spec: &str, options: Options) -> Packed<aquatint::raw::mmap::FileBytes> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aquatint-config-{}-{}.json", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let config = std::env::temp_dir().join(name);
    std::fs::write(&config, serde_json::json!({ "*": spec }).to_string()).expect("the temporary directory takes files");
    let q_config = Some(config.to_str().expect("a path of UTF-8").to_owned());
    let packed = pack_as(Options { q_config, ..options });
    std::fs::remove_file(&config).expect("the file was just written");
    packed
}

/// Tensors of a fixture file by name, as f32.
pub struct Fixture(Vec<u8>);

impl Fixture {
    /// Reads a file.
    pub fn open(path: &Path) -> Self {
        Fixture(std::fs::read(path).expect("the fixture is there"))
    }

    /// A tensor and its axes.
    pub fn get(&self, key: &str) -> (Vec<f32>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let t = tensors.tensor(key).unwrap_or_else(|_| panic!("key {key}"));
        let values = match t.dtype() {
            safetensors::Dtype::F32 => {
                t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I64 => {
                t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
            }
            safetensors::Dtype::U8 => t.data().iter().map(|&b| f32::from(b)).collect(),
            other => panic!("{key} is {other:?}"),
        };
        (values, t.shape().to_vec())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let mut names: Vec<_> = tensors.names().into_iter().map(String::from).collect();
        names.sort();
        names
    }

    /// A tensor and its axes, if it is there.
    pub fn find(&self, key: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        tensors.names().contains(&key).then(|| self.get(key))
    }

    /// A tensor of class labels.
    pub fn labels(&self, key: &str) -> Vec<u32> {
        self.get(key).0.into_iter().map(|x| x as u32).collect()
    }
}

/// `|a - b| / |b|`.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let (mut error, mut norm) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        norm += f64::from(*b).powi(2);
    }
    (error / norm).sqrt()
}
