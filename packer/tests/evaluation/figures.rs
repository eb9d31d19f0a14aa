//! What is measured.

use crate::{letters, packed, repository};
use aquatint::{Cpu, Model, Prompts, Request, Session};
use aquatint_evaluation::report::{FileReport, Report};
use aquatint_evaluation::stats::Estimate;
use aquatint_evaluation::{Calls, Captions, File, Protocol, Scorer, evaluate};
use std::path::Path;

/// Compares packed files.
pub(crate) fn compare(paths: &[&Path], protocol: &Protocol, scorer: Option<&Scorer>) -> Report {
    let packed: Vec<_> = paths.iter().map(|path| aquatint::open(path).expect("it opens")).collect();
    let models: Vec<_> = packed.iter().map(|packed| Model::new(packed).expect("a model")).collect();
    let name = |path: &Path| path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
    let files: Vec<_> = paths.iter().zip(&models).map(|(path, model)| File { name: name(path), model }).collect();
    let mut last = None;
    let report = evaluate(&Cpu::best(), &files, protocol, scorer, &mut |progress| last = Some(progress));
    let last = last.expect("progress is told");
    assert_eq!(last.done, last.total, "all that was announced was done");
    report.expect("it runs")
}

/// A short run of few images.
fn brief(images: usize, steps: usize) -> Protocol {
    let mut protocol = Protocol { images, resamples: 200, frechet_resamples: 50, ..Protocol::default() };
    protocol.sampling.steps = Some(steps);
    protocol
}

fn figure(file: &FileReport, name: &str) -> Estimate {
    file.figures.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} of {}", file.name)).1
}

fn scorer() -> Scorer {
    let file = |name: &str| repository("models/glyphs").join(name);
    Scorer::open(&file("classifier.safetensors"), Some(&file("reference.safetensors")))
        .expect("the letters' classifier")
}

/// A prototype in torch, which quantized the same layers to tables of exact k-means and activations per token, found
/// 0.0647, 0.147 and 0.325 of 26 images at these calls.
#[test]
fn errors_of_calls_are_those_of_another_implementation() {
    let [f32, w4, w3, w2] = letters();
    let protocol = Protocol { seed: 22, calls: Calls::At(vec![47, 2, 25, 13, 37]), ..brief(4, 50) };
    let report = compare(&[f32, w4, w3, w2], &protocol, None);
    let run = report.conditions.run.as_ref().expect("images were made");
    assert_eq!(run.calls, [2, 13, 25, 37, 47]);
    assert_eq!(run.timesteps, [940.0, 720.0, 480.0, 240.0, 40.0]);
    assert_eq!((run.calls_of_run, run.seeds), (50, [22, 25]));
    assert!(
        report.files[0].figures.is_empty() && report.files[0].comparisons.is_empty(),
        "the reference has no errors"
    );
    for (file, expected) in report.files[1..].iter().zip([0.0647, 0.147, 0.325]) {
        let eps = figure(file, "eps");
        assert!((eps.value / expected - 1.0).abs() < 0.1, "{}: {eps:?} is not about {expected}", file.name);
        let curve: f64 = file.curve.iter().map(|call| call.eps * call.eps).sum();
        assert!((eps.value - (curve / 5.0).sqrt()).abs() < 1e-12, "the figure is that of the curve");
        assert!(eps.low <= eps.value && eps.value <= eps.high, "{eps:?}");
    }
    // What is twice as wrong is told apart by four images; each file is compared with the reference and the one before.
    let [first, before] = &report.files[2].comparisons[..] else { panic!("two comparisons") };
    assert_eq!((first.with.as_str(), before.with.as_str()), ("glyphs-f32", "glyphs-w4a8"));
    assert!(first.figures.is_empty());
    for name in ["eps", "latents_median", "psnr_median", "ssim_median"] {
        let (_, difference) = before.figures.iter().find(|(n, _)| *n == name).expect(name);
        assert!(!difference.noise, "{name}: {difference:?}");
    }
}

/// Batches, threads and other files change nothing.
#[test]
fn figures_depend_on_images_alone() {
    let [f32, w4, w3, _] = letters();
    let protocol = Protocol { scored: 9, ..brief(5, 3) };
    let json = |report: &Report, file: usize| serde_json::to_value(&report.files[file]).expect("JSON");
    let whole = compare(&[f32, w4, w3], &protocol, Some(&scorer()));
    let parts = Protocol { batch: Some(2), ..protocol.clone() };
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let other = one_thread.install(|| compare(&[f32, w4, w3], &parts, Some(&scorer())));
    assert_eq!(serde_json::to_string(&whole).expect("JSON"), serde_json::to_string(&other).expect("JSON"));
    let without = compare(&[f32, w3], &protocol, Some(&scorer()));
    assert_eq!(json(&without, 1)["figures"], json(&whole, 2)["figures"]);
    // Scored images come after the compared ones, and are the same whatever is compared.
    let more = compare(&[f32, w3], &Protocol { images: 7, ..protocol }, Some(&scorer()));
    assert_eq!(json(&more, 1)["reads"], json(&whole, 2)["reads"]);
    assert_eq!(json(&more, 1)["frechet"], json(&whole, 2)["frechet"]);
}

#[test]
fn a_file_differs_from_itself_in_nothing() {
    let [_, w4, ..] = letters();
    let report = compare(&[w4, w4], &Protocol { scored: 8, ..brief(4, 3) }, Some(&scorer()));
    let same = &report.files[1];
    for (name, figure) in &same.figures {
        let nothing = match name {
            name if name.contains("psnr") => f64::INFINITY,
            name if name.starts_with("ssim") => 1.0,
            _ => 0.0,
        };
        assert_eq!(*figure, Estimate { value: nothing, low: nothing, high: nothing }, "{name}");
    }
    assert!(same.curve.iter().all(|call| call.eps == 0.0 && call.guided == Some(0.0)));
    let [comparison] = &same.comparisons[..] else { panic!("one comparison") };
    let [("class", read)] = &comparison.reads[..] else { panic!("one criterion") };
    assert_eq!((read.lost, read.won, read.p, read.difference.noise), (0, 0, 1.0, true));
    let frechet = comparison.frechet.expect("features were given");
    assert_eq!(frechet.estimate, Estimate { value: 0.0, low: 0.0, high: 0.0 });
    assert!(frechet.noise);
    assert!(report.notes[0].contains("the reference is quantized itself"), "{:?}", report.notes);
}

/// Two bits are one too few for letters, and 52 letters show it.
#[test]
fn letters_that_are_lost_are_counted() {
    let [f32, _, w3, w2] = letters();
    let report = compare(&[f32, w3, w2], &Protocol { scored: 52, ..brief(2, 10) }, Some(&scorer()));
    let read = |file: usize| &report.files[file].reads[0].1;
    assert!(read(0).right >= 44 && read(0).images == 52, "{:?}", read(0));
    assert!(read(2).right < read(0).right - 10, "{:?} and {:?}", read(2), read(0));
    let [reference, before] = &report.files[2].comparisons[..] else { panic!("two comparisons") };
    for comparison in [reference, before] {
        let lost = &comparison.reads[0].1;
        assert!(lost.p < 0.01 && !lost.difference.noise && lost.lost > lost.won, "{}: {lost:?}", comparison.with);
        assert!(comparison.frechet.is_some_and(|d| d.estimate.value > 0.0), "{:?}", comparison.frechet);
    }
    let lost = &reference.reads[0].1;
    let shares = read(2).right as f64 - read(0).right as f64;
    assert_eq!(lost.won as f64 - lost.lost as f64, shares);
    assert!((lost.difference.estimate.value - shares / 52.0).abs() < 1e-12);
}

/// A text model and its refiner: prompts of several lengths, calls of both networks, features of the reference's encoders.
#[test]
fn models_that_read_texts_are_compared() {
    let pack = |spec: &str| {
        let output = crate::folder().join(format!("xl-{spec}.aqt"));
        let config = crate::folder().join(format!("xl-{spec}.json"));
        // Of itself a specification leaves out layers of few inputs, which tiny models have most of.
        std::fs::write(&config, serde_json::json!({ "*": spec }).to_string()).expect("a configuration");
        let options = packer::emit::Options {
            model: repository("tests/fixtures/sd/xl"),
            refiner: Some(repository("tests/fixtures/sd/refiner")),
            q_config: Some(config.to_str().expect("UTF-8").to_owned()),
            output: output.clone(),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        output
    };
    let [f32, w8, w3] = ["f32", "w8a8", "w3a8"].map(pack);
    let long = "a red cat on the sky a dog in the fog low a red cat on the sky a dog";
    let captions = Captions::new("captions", &format!("a red cat\n{long}\na dog\n")).expect("three captions");
    let protocol = Protocol { captions: Some(captions), ..brief(5, 5) };
    let report = compare(&[&f32, &w8, &w3], &protocol, None);
    assert_eq!(report.conditions.run.as_ref().expect("images were made").calls, [0, 1, 2, 3, 4]);
    let [w8, w3] = [1, 2].map(|file| figure(&report.files[file], "eps").value);
    assert!(0.0 < w8 && 2.0 * w8 < w3 && w3 < 2.0, "{w8} and {w3}");
    // The fifth step is the refiner's.
    assert!(report.files[2].curve.iter().all(|call| call.eps > 0.0), "{:?}", report.files[2].curve);
    let parts = compare(&[&f32, &pack("w8a8")], &Protocol { batch: Some(1), ..protocol }, None);
    let json = |report: &Report| serde_json::to_value(&report.files[1].figures).expect("JSON");
    assert_eq!(json(&parts), json(&report));
}

/// Without classes there is no guidance, and without a decoder the latents are the picture.
#[test]
fn models_of_pixels_are_compared() {
    let [f32, w8] = ["f32", "w8a8"].map(|spec| packed("tests/fixtures/layouts/ddim.ckpt", spec));
    let report = compare(&[&f32, &w8], &brief(3, 2), None);
    let file = &report.files[1];
    let names: Vec<_> = file.figures.iter().map(|(name, _)| *name).collect();
    assert!(names.contains(&"eps") && !names.contains(&"eps_guided"), "{names:?}");
    assert!(file.curve.iter().all(|call| call.eps == call.conditional && call.guided.is_none()));
    // Of latents in -1..1 and their pictures in 0..1, errors are in proportion where nothing was cut off.
    assert!(figure(file, "psnr_median").value.is_finite());
}

/// Latents of another run, or another model, become the images that a run of its own makes of them.
#[test]
fn latents_are_decoded_as_runs_decode_them() {
    let [f32, ..] = letters();
    let packed = aquatint::open(f32).expect("it opens");
    let model = Model::new(&packed).expect("a model");
    let cpu = Cpu::best();
    let mut session = Session::new(&model, &cpu);
    let mut request = Request::new(&model, Prompts::Classes(vec![3, 7]));
    request.steps = 2;
    let images = session.run(request.clone()).expect("it runs").images;
    let latents = session.job(request.clone()).and_then(|job| job.denoise(|_, _| ())).expect("it runs");
    assert_eq!(session.decode(&request, &latents).expect("they decode"), images);
    let second = session.decode(&request, &latents[latents.len() / 2..]).expect("one decodes");
    assert_eq!(second, images[images.len() / 2..]);
    for wrong in [&latents[1..], &[]] {
        let error = session.decode(&request, wrong).expect_err("no whole images").to_string();
        assert!(error.starts_with("latents: expected a multiple of 576 values, got "), "{error}");
    }
}
