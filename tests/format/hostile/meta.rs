//! META against the programs: whatever a resealed META says, the file is refused, or it makes the picture that it made
//! before, unless what was changed is for META alone to say.

use super::*;
use aquatint::error::ErrorKind;
use aquatint::model::Model;
use aquatint::pipeline::{Prompts, Request, Session};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::program::{Act, Dim, Op, Pointwise, Resample, Resampling, Value as ProgramValue};
use aquatint::sampler::SamplerKind;
use common::drive::{Use, lies, small, uses};
use common::fixture::pack_everywhere;
use common::meta_edits::{changes, differences, places};
use common::sealed::Sealed;
use common::{Build, SAMPLE};
use packer::emit::Options;
use serde_json::{Value, json};
use std::path::PathBuf;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn letters() -> AlignedBytes {
    AlignedBytes::new(&std::fs::read(root().join("models/glyphs-w4a8.aqt")).expect("the letter model"))
}

/// A tiny pipeline of `tests/fixtures/sd`, all layers of its denoisers packed as `spec` says.
fn packed(name: &str, refiner: Option<&str>, spec: &str, int8_attention: bool) -> AlignedBytes {
    let model = |name: &str| root().join("tests/fixtures/sd").join(name);
    let options = Options { model: model(name), refiner: refiner.map(model), int8_attention, ..Options::default() };
    AlignedBytes::new(pack_everywhere(spec, options).as_bytes())
}

/// What a file is found to be.
enum Found {
    /// It is refused.
    Unsound,
    /// It is sound, and this is what its uses made.
    Sound(Vec<Use>),
}

/// Opens, verifies and uses `file` at latents of `size`, on the fastest tier: the others are held to its proofs too.
fn examine(file: &AlignedBytes, size: [usize; 2]) -> Found {
    let Ok(packed) = Packed::new(file) else { return Found::Unsound };
    // What opens as a model, but is not verified, must be as safe to use.
    let (verified, model) = (Model::verify(&packed).is_ok(), Model::new(&packed));
    let used = model.map(|model| {
        let cpu = Cpu::new(Tier::available()[0]);
        uses(&cpu, &model, size)
    });
    match (verified, used) {
        (true, Ok(uses)) => Found::Sound(uses),
        (true, Err(e)) => panic!("verify calls sound what new refuses: {e}"),
        (false, _) => Found::Unsound,
    }
}

/// Tries every change of every place of META.
fn whatever_meta_says(file: &AlignedBytes) {
    let mut sealed = Sealed::of(file.as_ref());
    let meta = sealed.meta().expect("JSON");
    sealed.set_meta(&meta);
    let resealed = sealed.seal();
    let size = small(&Model::new(&Packed::new(&resealed).expect("sound")).expect("a model"));
    let Found::Sound(before) = examine(&resealed, size) else { panic!("it is sound") };
    for Use { name, made } in &before {
        made.as_ref().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let (mut unsound, mut sound) = (0, 0);
    let mut holes = Vec::new();
    for at in places(&meta, false) {
        for change in changes(&meta, &at) {
            let mut lie = meta.clone();
            change.apply(&mut lie, &at);
            sealed.set_meta(&lie);
            let file = sealed.seal();
            let found = catch_unwind(AssertUnwindSafe(|| examine(&file, size)));
            match found {
                Err(_) => holes.push(format!("panic: {at} {change}")),
                Ok(Found::Unsound) => unsound += 1,
                Ok(Found::Sound(after)) => {
                    sound += 1;
                    let lies = lies(&before, &after, &differences(&meta, &lie));
                    holes.extend(lies.into_iter().map(|lie| format!("{at} {change}: {lie}")));
                }
            }
        }
    }
    println!("{unsound} unsound, {sound} sound");
    assert!(holes.is_empty(), "{} holes:\n{}", holes.len(), holes.join("\n"));
    assert!(unsound > 500 && sound > 50, "{unsound} unsound, {sound} sound");
}

#[test]
fn the_letter_model_draws_what_it_drew() {
    whatever_meta_says(&letters());
}

#[test]
fn a_model_with_a_text_encoder_draws_what_it_drew() {
    whatever_meta_says(&packed("v1", None, "w8a8", true));
}

#[test]
fn a_base_with_a_refiner_draws_what_it_drew() {
    whatever_meta_says(&packed("xl", Some("refiner"), "w4a8", false));
}

#[test]
fn a_model_without_conditions_draws_what_it_drew() {
    whatever_meta_says(&packed("church", None, "f32", false));
}

/// The letter model with several fields changed.
fn with_fields(fields: &[(&str, Value)]) -> AlignedBytes {
    let mut sealed = Sealed::of(letters().as_ref());
    let mut meta = sealed.meta().expect("JSON");
    for (at, value) in fields {
        *meta.pointer_mut(at).expect(at) = value.clone();
    }
    sealed.set_meta(&meta);
    sealed.seal()
}

/// As many steps as a schedule can have must not make verifying long or large, whatever the sampler.
#[test]
fn the_longest_schedules_are_refused_at_once() {
    for kind in SamplerKind::ALL {
        for steps in [1000, 1 << 16, 1 << 20] {
            let file = with_fields(&[
                ("/pipeline/sampler/kind", json!(kind.to_string())),
                ("/pipeline/sampler/train_steps", json!(1 << 20)),
                ("/pipeline/steps", json!(steps)),
            ]);
            let packed = Packed::new(&file).expect("it opens");
            let before = ASKED.get();
            let found = Model::verify(&packed).map(|model| model.steps);
            let asked = ASKED.get() - before;
            assert!(asked < 64 << 20, "{kind}, {steps} steps: {asked} bytes");
            assert!(steps == 1000 || found.is_err(), "{kind}: {steps} steps are sound");
        }
    }
}

/// Sizes are multiples of what META says, which the model's own size may hide: a program that cannot take another size
/// says so when it is planned.
#[test]
fn sizes_that_a_program_cannot_take_are_refused_when_planned() {
    let mut sealed = Sealed::of(letters().as_ref());
    let mut meta = sealed.meta().expect("JSON");
    // Its latents come in patches of two.
    meta["pipeline"]["latent_multiple"] = json!(1);
    sealed.set_meta(&meta);
    refused_when_planned(&sealed.seal(), Prompts::Classes(vec![1]), &[[5, 6], [6, 5], [1, 1]]);
}

/// A denoiser whose result has the size of its latents at the model's own size only.
#[test]
fn denoisers_that_make_another_size_are_refused_when_planned() {
    let lie = |dims: [Dim; 4], ops: Vec<Op>| {
        let mut build = Build::of(vec![(InputKind::Sample, dims.to_vec())]);
        for op in ops {
            build.op(op);
        }
        let mut sealed = Sealed::of(build.open([4, 4]).as_bytes());
        let mut meta = sealed.meta().expect("JSON");
        let pipeline = &mut meta["pipeline"];
        for (field, value) in [("latent_channels", 3), ("pixels_per_latent", 1), ("classes", 0), ("null_class", 0)] {
            pipeline[field] = json!(value);
        }
        sealed.set_meta(&meta);
        sealed.seal()
    };
    let channels = Dim::Fixed(3);
    // Half of five, doubled, is four.
    let halves = vec![
        Op::Resample(Resample { x: SAMPLE, how: Resampling::Mean }),
        Op::Resample(Resample { x: ProgramValue(1), how: Resampling::Nearest }),
    ];
    let file = lie([Dim::Batch, Dim::Height, Dim::Width, channels], halves);
    refused_when_planned(&file, Prompts::Unconditional(1), &[[5, 4], [4, 5], [7, 7]]);
    let same = || vec![Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 1.0, add: 0.0 })];
    let file = lie([Dim::Batch, Dim::Fixed(4), Dim::Fixed(4), channels], same());
    refused_when_planned(&file, Prompts::Unconditional(1), &[[8, 8], [2, 8], [1, 1]]);
    // As many latents in all, but not of one sample.
    let file = lie([Dim::Fixed(1), Dim::Height, Dim::Width, channels], same());
    refused_when_planned(&file, Prompts::Unconditional(2), &[[4, 4]]);
}

/// Asserts that the model is sound, and that latents of `sizes` are refused before anything is bound.
fn refused_when_planned(file: &AlignedBytes, prompts: Prompts, sizes: &[[usize; 2]]) {
    let packed = Packed::new(file).expect("it opens");
    let model = Model::verify(&packed).expect("sound at its own size");
    let cpu = Cpu::new(Scalar);
    let mut session = Session::new(&model, &cpu);
    for &latent_size in sizes {
        let mut request = Request::new(&model, prompts.clone());
        (request.latent_size, request.steps) = (latent_size, 1);
        let sample = vec![0.0; prompts.len() * model.latents.len(latent_size)];
        for result in [session.plans(&request).map(|_| ()), session.run(request).map(|_| ())] {
            let e = result.expect_err("no such size");
            assert!(matches!(e.kind(), ErrorKind::Shape | ErrorKind::Request), "{latent_size:?}: {e}");
        }
        assert_eq!(session.binds(), 0);
        let e = Session::new(&model, &cpu).eval(&sample, latent_size, prompts.clone(), 1.0).expect_err("no such size");
        assert!(matches!(e.kind(), ErrorKind::Shape | ErrorKind::Request), "{latent_size:?}: {e}");
    }
}
