//! Models in their authors' layout compute what diffusers computes of them (`tests/fixtures/make_compvis.py`): heads that
//! shapes do not tell, averages instead of weights, projections taken apart.

use aquatint::pipeline::{Prompts, Session};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use common::fixture::{Fixture, pack, relative};
use std::path::Path;

#[test]
fn denoisers_equal_diffusers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layouts");
    let io = Fixture::open(&folder.join("io.safetensors"));
    for name in ["ddim", "bedroom", "church", "imagenet"] {
        let packed = pack(&folder.join(format!("{name}.ckpt")), "f32", None);
        let model = aquatint::model::Model::new(&packed).unwrap();
        let get = |key: &str| io.get(&format!("{name}.{key}"));
        let (sample, dims) = get("sample");
        let subjects = match name {
            "imagenet" => Prompts::Classes(io.labels("imagenet.labels")),
            _ => Prompts::Unconditional(dims[0]),
        };
        for tier in Tier::available() {
            let size = [dims[2], dims[3]];
            let out = {
                let cpu = Cpu::new(tier);
                Session::new(&model, &cpu).eval(&sample, size, subjects.clone(), get("timestep").0[0])
            };
            let error = relative(&out.unwrap().0, &get("out").0);
            println!("{name} on {}: {error:.1e}", tier.name());
            // As for the same networks from a directory: rounding to f32, a few dozen layers deep.
            assert!(error < 1e-5, "{name} on {}: {error:e}", tier.name());
        }
    }
}
