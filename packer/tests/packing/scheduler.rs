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
    let source = model.sources.iter().find(|s| s.meta.file.ends_with("scheduler_config.json")).unwrap();
    assert_eq!(source.meta.bytes, text.len() as u64);
}
