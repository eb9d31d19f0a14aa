//! The files that are changed, and what they make unchanged.

use aquatint::model::Model;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::format::Packed;
use common::drive::{Use, small, uses};
use common::fixture::pack_everywhere;
use common::sealed::Sealed;
use common::tiny;
use packer::emit::Options;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A sound file.
pub struct Subject {
    /// Its name in reports.
    pub name: String,
    /// The file.
    pub file: Sealed,
    /// META of it.
    pub meta: Value,
    /// Height and width of its small latents.
    pub size: [usize; 2],
    /// What it makes of them on each tier.
    pub made: Vec<Vec<Use>>,
    /// Whether it is small enough for the emulated device.
    pub emulated: bool,
}

impl Subject {
    fn new(name: &str, mut file: Sealed, emulated: bool) -> Self {
        // Written by the same hand as all that follow, so that only changes differ.
        let meta = file.meta().expect("META is JSON");
        file.set_meta(&meta);
        let bytes = file.seal();
        let packed = Packed::new(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model = Model::verify(&packed).unwrap_or_else(|e| panic!("{name}: {e}"));
        let size = small(&model);
        let make = |tier: Tier| {
            let cpu = Cpu::new(tier);
            uses(&cpu, &model, size)
        };
        let made: Vec<Vec<Use>> = Tier::available().into_iter().map(make).collect();
        for Use { name: what, made } in made.iter().flatten() {
            made.as_ref().unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
        }
        Subject { name: name.into(), file, meta, size, made, emulated }
    }

    /// A packed file at `path`.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Subject::new(&path.display().to_string(), Sealed::of(&bytes), false)
    }
}

/// A file of each kind: classes, texts, a base with its refiner, and no conditions, with and without a decoder.
pub fn all() -> Vec<Subject> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fixture = |name: &str| root.join("tests/fixtures").join(name);
    let pack = |name: &str, model: PathBuf, refiner: Option<PathBuf>, config: &str, emulated| {
        let (spec, int8_attention) = match config.strip_suffix(" with int8 attention") {
            Some(spec) => (spec, true),
            None => (config, false),
        };
        let options = Options { model, refiner, int8_attention, ..Options::default() };
        Subject::new(name, Sealed::of(pack_everywhere(spec, options).as_bytes()), emulated)
    };
    let letters = Subject::read(&root.join("models/glyphs-w4a8.aqt"));
    vec![
        Subject { name: "letters".into(), ..letters },
        Subject::new("one of everything", one_of_everything(), true),
        pack("text", fixture("sd/v1"), None, "w8a8 with int8 attention", false),
        pack("base and refiner", fixture("sd/xl"), Some(fixture("sd/refiner")), "w4a8", false),
        pack("unconditional", fixture("sd/church"), None, "f32", true),
        pack("classes", fixture("sd/classes"), None, "w4a8:kmeans", false),
        pack("learned variance", fixture("dit/d2"), None, "w3a8", false),
        pack("pixels", fixture("unet/asym"), None, "f32", true),
    ]
}

/// The tiny file that has every op, with a report of the layers that it has: none.
fn one_of_everything() -> Sealed {
    let mut file = Sealed::of(tiny::bytes().as_ref());
    let mut meta = file.meta().expect("META is JSON");
    meta["quantization"]["layers"] = json!([]);
    meta["aliases"] = json!({});
    file.set_meta(&meta);
    file
}
