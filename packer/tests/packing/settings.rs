//! What lies beside the weights and says which sampler a model wants, who has the last word, and what META keeps of it.

use crate::common::{Scratch, fixture, pack_as};
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::sampler::{Config, Prediction, SamplerKind, Spacing};
use packer::emit::{Options, Report, pack};
use packer::source::Checkpoint;
use packer::source::diffusers::Model;
use packer::source::donors::Donors;
use packer::source::settings::{Overrules, prediction};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The tiny single file `layout` as safetensors, with `marks` among its tensors and with `metadata`.
fn single(scratch: &Scratch, layout: &str, marks: &[&str], metadata: &[(&str, &str)]) -> PathBuf {
    let file = Checkpoint::open_file(&fixture(&format!("layouts/{layout}.ckpt")), &mut Vec::new()).unwrap();
    let file =
        if file.keys().any(|key| key.starts_with("state_dict.")) { file.below("state_dict").unwrap() } else { file };
    // Counters are integers, and no weights.
    let bytes = |key: &str| Some(file.read(key).ok()?.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let tensor = |key| Some((key, file.shape(key)?.to_vec(), bytes(key)?));
    let tensors: Vec<_> = file.keys().filter_map(tensor).collect();
    let views = tensors
        .iter()
        .map(|(key, shape, bytes)| (key.to_string(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let marks = marks.iter().map(|mark| (mark.to_string(), TensorView::new(Dtype::F32, vec![0], &[]).unwrap()));
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let path = scratch.path(&format!("{layout}.safetensors"));
    fs::write(&path, safetensors::serialize(views.chain(marks), Some(metadata)).unwrap()).unwrap();
    path
}

/// The sampler that the file at `path` wants, and who says what it predicts.
fn wanted(path: &Path, overrules: &Overrules) -> (Config, String) {
    let model =
        Model::open_with(path, &Donors::default(), overrules).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let by = model.decided_by.get("prediction_type").or(model.decided_by.get("scheduler")).unwrap().clone();
    (Config::from_diffusers(&model.scheduler).unwrap(), by)
}

fn refused(path: &Path, overrules: &Overrules) -> String {
    Model::open_with(path, &Donors::default(), overrules).expect_err("refused").to_string()
}

fn says(prediction: Prediction) -> Overrules {
    Overrules { prediction: Some(prediction), ..Overrules::default() }
}

const YAML: &str = "model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: \"v\"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
";

#[test]
fn metadata_marks_and_companions_say_what_is_predicted() {
    let none = Overrules::default();
    let scratch = Scratch::new("settings");
    let (config, by) = wanted(&single(&scratch, "sdxl", &[], &[("modelspec.title", "v")]), &none);
    assert_eq!((config.prediction, &by[..]), (Prediction::Epsilon, "default of SDXL base"));
    for (metadata, want) in [
        (("modelspec.prediction_type", "v"), Prediction::VPrediction),
        (("modelspec.prediction_type", "epsilon"), Prediction::Epsilon),
        (("modelspec.predict_key", "v"), Prediction::VPrediction),
        (("ss_v_parameterization", "True"), Prediction::VPrediction),
    ] {
        let (config, by) = wanted(&single(&scratch, "sdxl", &[], &[metadata]), &none);
        assert_eq!((config.prediction, by), (want, format!("metadata {}", metadata.0)));
        assert!(!config.rescale_betas_zero_snr && config.spacing == Some(Spacing::Leading));
    }
    let (config, by) = wanted(&single(&scratch, "sdxl", &["v_pred"], &[]), &none);
    assert_eq!((config.prediction, &by[..]), (Prediction::VPrediction, "tensor v_pred"));
    assert!(!config.rescale_betas_zero_snr);
    let (config, _) =
        wanted(&single(&scratch, "sdxl", &["v_pred", "ztsnr"], &[("modelspec.prediction_type", "v")]), &none);
    assert_eq!((config.prediction, config.kind), (Prediction::VPrediction, SamplerKind::Euler));
    assert!(config.rescale_betas_zero_snr && config.spacing == Some(Spacing::Trailing));
    assert_eq!(config.table(10).unwrap().rows[0].timestep, 999.0);

    for extension in ["yaml", "yml"] {
        let file = single(&scratch, "sd", &[], &[]);
        let companion = file.with_extension(extension);
        fs::write(&companion, YAML).unwrap();
        let (config, by) = wanted(&file, &none);
        assert_eq!((config.prediction, by), (Prediction::VPrediction, format!("sd.{extension}: parameterization")));
        assert_eq!((config.beta_start, config.beta_end, config.train_steps), (0.00085, 0.012, 1000));
        fs::remove_file(companion).unwrap();
    }
    let sgm = "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n";
    let file = single(&scratch, "sdxl", &[], &[]);
    fs::write(file.with_extension("yaml"), sgm).unwrap();
    assert_eq!(wanted(&file, &none).0.prediction, Prediction::VPrediction);
}

#[test]
fn a_companion_is_read_whole_or_refused() {
    let scratch = Scratch::new("companion");
    let file = single(&scratch, "sd", &[], &[]);
    let with = |from: &str, to: &str| {
        assert!(YAML.contains(from));
        fs::write(file.with_extension("yaml"), YAML.replace(from, to)).unwrap();
    };
    with("0.0120", "0.013");
    let model = Model::open(&file).unwrap();
    assert_eq!(
        (&model.scheduler["beta_end"], &model.decided_by["beta_end"][..]),
        (&json!(0.013), "sd.yaml: linear_end")
    );
    assert!(model.sources.iter().any(|s| s.file == "sd.yaml" && !s.weights));
    with("0.18215", "0.5");
    assert_eq!(Model::open(&file).unwrap().component("vae").config["scaling_factor"], json!(0.5));
    for (from, to, words) in [
        ("\"v\"", "flow", ["sd.yaml: parameterization", "--prediction decides"]),
        ("timesteps", "beta_schedule: cosine\n    timesteps", ["sd.yaml: beta_schedule", "cosine"]),
        ("model:", "model: [", ["sd.yaml", "YAML"]),
    ] {
        with(from, to);
        let text = refused(&file, &Overrules::default());
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains('\n'), "{text}");
    }
    // A file of that name that is no model's says nothing of one.
    with("model:", "layers:");
    assert_eq!(wanted(&file, &Overrules::default()).0.prediction, Prediction::Epsilon);
}

#[test]
fn contradictions_name_both_and_who_decides() {
    let scratch = Scratch::new("contradiction");
    let file = single(&scratch, "sdxl", &["v_pred"], &[("modelspec.prediction_type", "epsilon")]);
    let text = refused(&file, &Overrules::default());
    for word in ["metadata modelspec.prediction_type", "tensor v_pred", "epsilon", "v_prediction", "--prediction"] {
        assert!(text.contains(word), "{text:?} lacks {word}");
    }
    for overruled in Prediction::ALL {
        let (config, by) = wanted(&file, &says(*overruled));
        assert_eq!((config.prediction, &by[..]), (*overruled, "--prediction"));
    }
    let file = single(&scratch, "sdxl", &[], &[("modelspec.prediction_type", "flow")]);
    let text = refused(&file, &Overrules::default());
    assert!(text.contains("modelspec.prediction_type") && text.contains("\"flow\""), "{text}");
    assert_eq!(wanted(&file, &says(Prediction::Epsilon)).0.prediction, Prediction::Epsilon);
    // Base and refiner make one run.
    let [base, refiner] = ["sdxl", "refiner"].map(|layout| single(&scratch, layout, &[], &[]));
    let open = |path: &Path, prediction| Model::open_with(path, &Donors::default(), &says(prediction)).unwrap();
    let other = open(&base, Prediction::VPrediction).with_refiner(open(&refiner, Prediction::Epsilon));
    let text = other.map(|_| ()).expect_err("refused").to_string();
    assert!(text.contains("refiner") && text.contains("prediction_type"), "{text}");
}

#[test]
fn a_scheduler_file_overrules_what_it_says() {
    let scratch = Scratch::new("scheduler-config");
    let marked = single(&scratch, "sdxl", &["v_pred", "ztsnr"], &[]);
    let write = |fields: serde_json::Value| {
        let path = scratch.path("other.json");
        fs::write(&path, fields.to_string()).unwrap();
        Overrules { scheduler_config: Some(path), ..Overrules::default() }
    };
    let base = json!({"_class_name": "DDIMScheduler", "beta_end": 0.03, "timestep_spacing": "linspace"});
    let (config, by) = wanted(&marked, &write(base.clone()));
    // What it leaves open is for the others to say.
    assert_eq!((config.kind, config.beta_end, config.spacing), (SamplerKind::Ddim, 0.03, Some(Spacing::Linspace)));
    assert_eq!((config.prediction, &by[..]), (Prediction::VPrediction, "tensor v_pred"));
    let mut told = base;
    told["prediction_type"] = json!("epsilon");
    told["rescale_betas_zero_snr"] = json!(false);
    let overrules = write(told);
    let (config, by) = wanted(&marked, &overrules);
    assert_eq!((config.prediction, config.rescale_betas_zero_snr), (Prediction::Epsilon, false));
    assert_eq!(by, "--scheduler-config");
    let both = Overrules { prediction: Some(Prediction::Sample), ..overrules };
    assert_eq!(wanted(&marked, &both).0.prediction, Prediction::Sample);
    let missing = Overrules { scheduler_config: Some(scratch.path("none.json")), ..Overrules::default() };
    assert!(refused(&marked, &missing).contains("none.json"));
}

/// Packs `model` as `overrules` say; the report, and what META tells of the pipeline.
fn packed(scratch: &Scratch, model: &Path, overrules: Overrules) -> (Report, PipelineMeta) {
    let output = scratch.path("out.aqt");
    let options = Options { model: model.to_owned(), overrules, output: output.clone(), ..Default::default() };
    let report = pack(&options, &mut |_| ()).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    let pipeline = Packed::open(&output).unwrap().meta().pipeline.clone();
    (report, pipeline)
}

#[test]
fn meta_keeps_what_was_decided_and_by_whom() {
    let scratch = Scratch::new("decided");
    let directory = scratch.copy_of("d2");
    let (report, meta) = packed(&scratch, &directory, Overrules::default());
    assert!(report.notes.is_empty() && meta.decided_by.is_empty());
    assert!(meta.sampler_lines()[1].starts_with("predicts epsilon (scheduler/scheduler_config.json"));
    let (_, meta) = packed(&scratch, &directory, says(Prediction::VPrediction));
    assert_eq!(meta.sampler.prediction, Prediction::VPrediction);
    assert_eq!(meta.sampler_lines()[1], "predicts v_prediction (--prediction)");
    let church = single(&scratch, "church", &[], &[("modelspec.prediction_type", "v")]);
    let (_, meta) = packed(&scratch, &church, Overrules::default());
    assert_eq!(meta.decided_by["prediction_type"], "metadata modelspec.prediction_type");
    assert_eq!(meta.decided_by["scheduler"], "default of unconditional latent diffusion");

    // Another scheduler than those that run here leaves its schedule to one that does.
    let other = json!({"_class_name": "SASolverScheduler", "beta_start": 0.001, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": "epsilon"});
    fs::write(directory.join("scheduler/scheduler_config.json"), other.to_string()).unwrap();
    let (report, meta) = packed(&scratch, &directory, Overrules::default());
    assert!(
        report.notes[0].contains("SASolverScheduler") && report.notes[0].contains("dpm++2m-sde"),
        "{:?}",
        report.notes
    );
    assert_eq!((meta.sampler.replaces.as_deref(), meta.sampler.beta_start), (Some("SASolverScheduler"), 0.001));
    // A schedule as a table travels in META.
    let betas: Vec<f32> = (0..1000).map(|i| 1e-4 + i as f32 * 2e-5).collect();
    let trained = json!({"_class_name": "DDPMScheduler", "trained_betas": betas});
    fs::write(directory.join("scheduler/scheduler_config.json"), trained.to_string()).unwrap();
    let (_, meta) = packed(&scratch, &directory, Overrules::default());
    assert_eq!(meta.sampler.trained_betas, Some(betas));
    // An output that is the file it is made with is refused before it is written.
    let scheduler = scratch.path("s.json");
    fs::write(&scheduler, "{}").unwrap();
    let overrules = Overrules { scheduler_config: Some(scheduler.clone()), ..Overrules::default() };
    let options = Options { model: directory.clone(), overrules, output: scheduler.clone(), ..Default::default() };
    assert!(pack(&options, &mut |_| ()).is_err() && fs::read_to_string(&scheduler).unwrap() == "{}");
    assert!(pack_as(&directory, None, &scratch.path("again.aqt")).is_ok());
}

#[test]
fn words_for_predictions_are_those_of_all_programs() {
    for (text, want) in [
        ("epsilon", Prediction::Epsilon),
        ("eps", Prediction::Epsilon),
        ("v", Prediction::VPrediction),
        ("V", Prediction::VPrediction),
        ("v_prediction", Prediction::VPrediction),
        ("v-prediction", Prediction::VPrediction),
        ("sample", Prediction::Sample),
    ] {
        assert_eq!(prediction(text), Some(want), "{text}");
    }
    assert_eq!(prediction("flow"), None);
}
