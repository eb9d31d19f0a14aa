//! Comparisons of packed files: what is measured, and `packer evaluate` as a person meets it.

mod command;
mod figures;
mod pictures;
mod search;
mod sensitivity;

use packer::emit::{Options, pack};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file or folder of the repository.
fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A folder for this run of the tests.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("evaluation-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for tests");
        folder
    })
}

/// The letter model, packed once for each of these.
fn letters() -> &'static [PathBuf; 4] {
    static FILES: OnceLock<[PathBuf; 4]> = OnceLock::new();
    FILES.get_or_init(|| ["f32", "w4a8:kmeans", "w3a8:kmeans", "w2a8:kmeans"].map(|spec| packed("models/glyphs", spec)))
}

/// A model of the repository, packed as `spec` says, in a file that is called by its first part.
fn packed(model: &str, spec: &str) -> PathBuf {
    let name = Path::new(model).file_name().expect("a name").to_str().expect("UTF-8");
    let part = spec.split(':').next().expect("a part");
    let output = folder().join(format!("{name}-{part}.aqt"));
    // Of itself a specification spares the last layer, and activations of what is hoisted.
    let config = folder().join(format!("{name}-{part}.json"));
    let layers = serde_json::json!({ "*": spec, "*pos_embed.proj": if spec == "f32" { "f32" } else { "f16" } });
    let whole = model == "models/glyphs";
    if whole {
        std::fs::write(&config, layers.to_string()).expect("a configuration");
    }
    let q_config = Some(if whole { config.to_str().expect("UTF-8").to_owned() } else { spec.to_owned() });
    let options = Options { model: repository(model), q_config, output: output.clone(), ..Default::default() };
    pack(&options, &mut |_| ()).expect("the model packs");
    output
}
