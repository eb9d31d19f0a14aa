//! Calibration of models that read texts by T5, mT5 and BERT, and of videos: their numbers against torch's
//! (`tests/fixtures/make_moments_texts.py`), and packing with them.

use crate::calibrate::{distance, moments_distance};
use crate::common::{Scratch, fixture, load};
use aquatint::options::SamplingOptions;
use aquatint::pipeline::NoiseSource;
use packer::calibrate::{Calibration, Settings, calibrate};
use packer::emit::{Options, Report, pack};
use packer::source::donors::Donors;
use std::fs;

/// A run of the script.
struct Case {
    name: &'static str,
    model: &'static str,
    guidance: f32,
    sampler: Option<&'static str>,
    /// Layers that the fixture tells of.
    layers: usize,
}

const CASES: [Case; 3] = [
    Case { name: "pixart", model: "pixart/alpha", guidance: 4.5, sampler: None, layers: 22 },
    Case { name: "latte", model: "latte", guidance: 3.0, sampler: None, layers: 23 },
    Case { name: "hunyuan", model: "hunyuan", guidance: 5.0, sampler: Some("ddim"), layers: 28 },
];

/// The settings of a run of `model`, with output `output` in `scratch`.
fn settings(scratch: &Scratch, model: &str, guidance: f32, output: &str) -> Settings {
    let mut settings = Settings::new(fixture(model), scratch.path(output));
    settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: Some(guidance), ..Default::default() };
    (settings.images, settings.calls, settings.seed, settings.noise) = (3, 3, 7, NoiseSource::Torch);
    fs::write(scratch.path("prompts.txt"), "a red cat\nfog\na red cat\n").unwrap();
    settings.prompts = Some(scratch.path("prompts.txt"));
    settings
}

impl Case {
    fn settings(&self, scratch: &Scratch, output: &str) -> Settings {
        let mut settings = settings(scratch, self.model, self.guidance, output);
        settings.sampling.sampler = self.sampler.map(str::to_owned);
        settings
    }
}

fn run(settings: &Settings) -> Calibration {
    calibrate(settings, &mut |_| true).unwrap();
    Calibration::open(&settings.output).unwrap()
}

#[test]
fn moments_are_those_of_diffusers_and_transformers() {
    let want = load(&fixture("moments_texts.safetensors"));
    for case in &CASES {
        let scratch = Scratch::new("moments-texts");
        let calibration = run(&case.settings(&scratch, "c.safetensors"));
        let (mut layers, mut worst) = (0, 0f64);
        for key in want.keys().filter_map(|key| key.strip_suffix(".mean")) {
            let Some(name) = key.strip_prefix(&format!("{}:", case.name)) else { continue };
            let moments = calibration.moments(name).unwrap().unwrap_or_else(|| panic!("{name} is there"));
            let seen = calibration.extremes(name).unwrap().expect("it is there");
            let range: Vec<f64> = seen.low.iter().chain(&seen.high).map(|&v| f64::from(v)).collect();
            let [input] = calibration.record().layers[name][..] else { panic!("{name} reads one value") };
            let sums = calibration.sums(input).unwrap();
            let spread = [sums.squared_ranges / sums.groups];
            for far in [
                moments_distance(&moments, key, &want),
                distance(&range, &want[&format!("{key}.range")].values),
                distance(&spread, &want[&format!("{key}.spread")].values),
            ] {
                assert!(far < 1e-5, "{key}: {far:e}");
                worst = worst.max(far);
            }
            layers += 1;
        }
        assert_eq!(layers, case.layers, "{}", case.name);
        println!("{}: {layers} layers, at most {worst:.1e}", case.name);
    }
}

/// Texts of one call are filled up to the longest of it: how many share one must not show.
#[test]
fn neither_batches_nor_memory_change_a_byte() {
    for case in &CASES {
        let scratch = Scratch::new("same-texts");
        let settings = case.settings(&scratch, "c.safetensors");
        run(&settings);
        let expected = fs::read(&settings.output).unwrap();
        for changed in [
            Settings { batch: 1, ..settings.clone() },
            Settings { batch: 2, ..settings.clone() },
            Settings { memory: 60_000, ..settings.clone() },
        ] {
            run(&changed);
            let (batch, memory) = (changed.batch, changed.memory);
            assert!(
                fs::read(&settings.output).unwrap() == expected,
                "{}: batches of {batch}, {memory} bytes",
                case.name
            );
        }
    }
}

/// Packs a model with codes in all layers of the denoiser and of its text encoders.
fn packed(scratch: &Scratch, settings: &Settings) -> Report {
    let all = scratch.path("all.json");
    fs::write(&all, r#"{"*": "w3a8"}"#).unwrap();
    let all = Some(all.to_str().unwrap().to_owned());
    let options = Options {
        model: settings.model.clone(),
        donors: settings.donors.clone(),
        q_config: all.clone(),
        text_q_config: all,
        calibration: Some(settings.output.clone()),
        output: scratch.path("m.aqt"),
        ..Options::default()
    };
    pack(&options, &mut |_| ()).unwrap()
}

/// Checks that codes of `report` are chosen for the inputs that `calibration` knows, and err less for it.
fn assert_calibrated(report: &Report, calibration: &Calibration, what: &str) {
    let [mut error, mut nearest] = [0.0; 2];
    let mut encoders = 0;
    for name in calibration.record().layers.keys() {
        let line = report.layers.iter().find(|line| Some(&*line.meta.name) == name.strip_suffix(".weight"));
        let Some(line) = line.filter(|line| line.meta.method.starts_with("mse")) else { continue };
        let (Some(own), Some(other)) = (line.meta.output_error, line.meta.nearest_output_error) else {
            panic!("{what}: {name} is not calibrated: {:?}", line.meta);
        };
        error += own.ln();
        nearest += other.ln();
        encoders += usize::from(name.starts_with("text_encoder"));
    }
    println!("{what}: {error:.1} after {nearest:.1}, {encoders} layers of text encoders");
    assert!(error < nearest - 1.0 && encoders > 5, "{what}: {error} {nearest}, {encoders}");
}

#[test]
fn codes_are_chosen_for_what_texts_and_videos_are_like() {
    for case in &CASES {
        let scratch = Scratch::new("packed-texts");
        let settings = case.settings(&scratch, "c.safetensors");
        let calibration = run(&settings);
        assert_calibrated(&packed(&scratch, &settings), &calibration, case.name);
    }
}

/// A video's calls are looked at whole, frame by frame, and captions each with its own tokens.
#[test]
fn videos_have_the_rows_of_all_their_frames() {
    let scratch = Scratch::new("videos");
    let donor = fixture("pixart/alpha");
    let mut settings = settings(&scratch, "stdit/stdit.pth", 7.0, "c.safetensors");
    settings.donors = Donors { autoencoder: Some(donor.join("vae")), text: vec![donor], ..Donors::default() };
    let calibration = run(&settings);
    let rows = |layer: &str| {
        let [input] = calibration.record().layers[layer][..] else { panic!("one value") };
        let sums = calibration.sums(input).unwrap();
        [sums.rows, sums.weight]
    };
    // 3 calls of 3 videos of 3 frames of 16 tokens, twice.
    for attention in ["attn1", "attn_temp", "attn2"] {
        let query = format!("transformer/transformer_blocks.1.{attention}.to_q.weight");
        assert_eq!(rows(&query), [3.0 * 3.0 * 3.0 * 16.0 * 2.0; 2], "{attention}");
    }
    // Of each text as many rows of the learned caption are what guidance leads away from; one text is of two videos.
    let [of_texts, weight] = rows("text_encoder/encoder.block.0.layer.0.SelfAttention.q.weight");
    let caption = rows("transformer/caption_projection.linear_1.weight");
    println!("texts of {of_texts} rows, {weight} in all; captions {caption:?}");
    assert!(of_texts < weight);
    assert_eq!(caption, [2.0 * of_texts, 2.0 * weight]);
    assert_calibrated(&packed(&scratch, &settings), &calibration, "stdit");
}
