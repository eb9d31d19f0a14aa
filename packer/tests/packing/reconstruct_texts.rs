//! Reconstruction of transformers that read texts, and of videos: errors of their blocks fall, and what is packed is what was
//! trained.

use crate::common::{Scratch, fixture};
use aquatint::options::SamplingOptions;
use packer::calibrate::{self, calibrate};
use packer::emit::{Options, pack};
use packer::reconstruct::{Activations, Settings, StepTraining, Training, reconstruct};
use packer::source::donors::Donors;
use std::fs;

/// Reconstructs a model, of whose units some are these `blocks`. Guidance is weak, and the sampler adds no noise, because latents
/// of networks with random weights grow.
fn check(model: &str, blocks: &[&str]) {
    let scratch = Scratch::new("reconstruct-texts");
    let (prompts, config) = (scratch.path("prompts.txt"), scratch.path("all.json"));
    fs::write(&prompts, "a red cat on the sky\nfog\na low river\n").unwrap();
    fs::write(&config, r#"{"*": "w3a8"}"#).unwrap();
    let config = config.to_str().unwrap().to_owned();
    // A network alone takes the others from elsewhere.
    let alone = fixture(model).is_file();
    let donor = fixture("pixart/alpha");
    let autoencoder = alone.then(|| donor.join("vae"));
    let donors = Donors { autoencoder, text: Vec::from_iter(alone.then_some(donor)), ..Donors::default() };

    let mut of_calibration = calibrate::Settings::new(fixture(model), scratch.path("c.safetensors"));
    let sampler = Some("ddim".to_owned());
    of_calibration.sampling = SamplingOptions { steps: Some(4), cfg_scale: Some(1.5), sampler, ..Default::default() };
    (of_calibration.images, of_calibration.calls) = (3, 2);
    (of_calibration.donors, of_calibration.prompts) = (donors.clone(), Some(prompts.clone()));
    calibrate(&of_calibration, &mut |_| true).unwrap();

    let output = scratch.path("r.safetensors");
    let mut settings = Settings::new(fixture(model), config.clone(), of_calibration.output, output.clone());
    (settings.donors, settings.prompts) = (donors.clone(), Some(prompts));
    (settings.batch, settings.samples) = (4, 12);
    settings.training = Training { iterations: 40, rate: 0.02, ..settings.training };
    settings.activations = Some(Activations { ranges: None, training: StepTraining { iterations: 8, rate: 0.02 } });
    let report = reconstruct(&settings, &mut |_| true).unwrap();

    let units = &report.record.units;
    let better = units.iter().filter(|unit| unit.curve.end < unit.curve.begin).count();
    let falls: f64 =
        units.iter().map(|unit| (unit.curve.end / unit.curve.begin).ln()).sum::<f64>() / units.len() as f64;
    println!("{model}: {better} of {} units are better, {:.2} of the error is left", units.len(), falls.exp());
    assert!(better * 10 >= units.len() * 8, "{model}: {better} of {}", units.len());
    assert!(falls.exp() < 0.9, "{model}: {falls}");
    for block in blocks {
        let unit = units.iter().find(|unit| unit.name == *block).unwrap_or_else(|| panic!("{model}: {block}"));
        assert!(unit.layers > 5 && unit.curve.end < unit.curve.begin, "{model} {block}: {:?}", unit.curve);
        assert!(unit.activations.is_some(), "{model} {block}");
    }
    let options = Options {
        model: fixture(model),
        donors,
        q_config: Some(config),
        import: Some(output),
        output: scratch.path("m.aqt"),
        ..Options::default()
    };
    let packed = pack(&options, &mut |_| ()).unwrap();
    for record in &report.record.layers {
        let line = packed.layers.iter().find(|line| Some(&*line.meta.name) == record.name.strip_suffix(".weight"));
        let line = line.unwrap_or_else(|| panic!("{model}: {}", record.name));
        assert_eq!(line.meta.note.as_deref(), Some("reconstructed"), "{model}: {}", record.name);
    }
}

#[test]
fn pixart_is_reconstructed() {
    check("pixart/alpha", &["transformer_blocks.0", "transformer_blocks.2"]);
}

#[test]
fn hunyuan_dit_is_reconstructed() {
    check("hunyuan", &["blocks.0", "blocks.3"]);
}

#[test]
fn latte_is_reconstructed() {
    check("latte", &["transformer_blocks.1", "temporal_transformer_blocks.1"]);
}

#[test]
fn stdit_is_reconstructed() {
    check("stdit/stdit.pth", &["transformer_blocks.0", "transformer_blocks.1"]);
}
