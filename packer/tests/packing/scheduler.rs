//! `scheduler_config.json` as diffusers writes it.

use crate::common::Scratch;
use aquatint::sampler::{Config, SamplerKind};
use packer::source::diffusers::Model;
use std::fs;

#[test]
fn a_file_with_pythons_infinity_is_read() {
    let scratch = Scratch::new("scheduler");
    let copy = scratch.copy_of("d2");
    let text = r#"{
  "_class_name": "DPMSolverSinglestepScheduler",
  "algorithm_type": "dpmsolver++",
  "lambda_min_clipped": -Infinity,
  "use_karras_sigmas": true
}
"#;
    fs::write(copy.join("scheduler/scheduler_config.json"), text).unwrap();
    let model = Model::open(&copy).unwrap();
    let config = Config::from_diffusers(&model.scheduler).unwrap();
    assert_eq!((config.kind, config.use_karras_sigmas), (SamplerKind::DpmSolverPp2S, true));
    // What is recorded is the file itself.
    let source = model.sources.iter().find(|s| s.file.ends_with("scheduler_config.json")).unwrap();
    assert_eq!(source.bytes, text.len() as u64);

    // Without spaces, and behind a byte-order mark.
    let path = copy.join("scheduler/scheduler_config.json");
    let minified = text.replace([' ', '\n'], "");
    for mark in ["", "\u{feff}"] {
        fs::write(&path, format!("{mark}{minified}")).unwrap();
        assert_eq!(Config::from_diffusers(&Model::open(&copy).unwrap().scheduler).unwrap(), config);
    }
    // A number that must be one is refused by its name.
    for (number, got) in [("Infinity", "and inf"), ("-Infinity", "and -inf"), ("NaN", "NaN")] {
        fs::write(&path, minified.replace("true", &format!("true,\"beta_end\":{number}"))).unwrap();
        let error = Config::from_diffusers(&Model::open(&copy).unwrap().scheduler).unwrap_err().to_string();
        assert!(error.contains("beta_end") && error.contains(got), "{error}");
    }
}
