//! Sampler settings: reading `scheduler_config.json`, defaults of each class, and what is refused.

use aquatint::sampler::{BetaSchedule, Config, Prediction, SamplerKind, SolverType, Spacing};
use serde_json::{Value, json};

/// A DPM-Solver++ file as diffusers writes it, -Infinity and all.
const DPM_FILE: &str = r#"{
  "_class_name": "DPMSolverMultistepScheduler",
  "_diffusers_version": "0.22.0",
  "algorithm_type": "dpmsolver++",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "lambda_min_clipped": -Infinity,
  "prediction_type": "v_prediction",
  "solver_type": "heun",
  "thresholding": false,
  "trained_betas": null,
  "use_karras_sigmas": true,
  "variance_type": null
}"#;

#[test]
fn scheduler_files_are_read() {
    // Python writes infinities that JSON does not have; whoever reads its files hands on their text.
    let file = DPM_FILE.replace(": -Infinity", ": \"-Infinity\"");
    let mut file: serde_json::Value = serde_json::from_str(&file).expect("JSON");
    let dpm = Config::from_diffusers(&file).expect("a supported file");
    assert_eq!((dpm.lambda_min_clipped, dpm.sample_max_value), (None, None));
    file["thresholding"] = json!(true);
    file["sample_max_value"] = json!("Infinity");
    assert_eq!(Config::from_diffusers(&file).expect("a supported file").sample_max_value, Some(f32::MAX));
    assert_eq!(dpm.kind, SamplerKind::DpmSolverPp2M);
    assert_eq!((dpm.beta_start, dpm.beta_end, dpm.beta_schedule), (0.00085, 0.012, BetaSchedule::ScaledLinear));
    assert_eq!((dpm.prediction, dpm.solver_type, dpm.spacing), (Prediction::VPrediction, SolverType::Heun, None));
    assert!(dpm.use_karras_sigmas && dpm.lower_order_final && !dpm.euler_at_final);

    let text = serde_json::to_string(&dpm).expect("serializable");
    assert_eq!(serde_json::from_str::<Config>(&text).expect("its own text"), dpm);
    assert!(text.contains(r#""kind":"dpm++2m""#), "{text}");
    assert!(serde_json::from_str::<Config>(r#"{"kind":"ddim","later_field":1}"#).is_err());

    // The other sampler keeps the schedule and takes its own spacing: leading ends at 0, linspace above it.
    let ddim = dpm.with_kind(SamplerKind::Ddim);
    let last = |config: &Config| config.table(10).expect("a table").rows[9].clone();
    assert_eq!((ddim.beta_end, ddim.prediction), (0.012, Prediction::VPrediction));
    assert_eq!((last(&ddim).timestep, last(&ddim).clamp), (0.0, Some(1.0)));
    let even = Config { use_karras_sigmas: false, ..dpm.clone() };
    assert_eq!((last(&even).timestep, last(&even).clamp), (100.0, None));
    assert_eq!("ddim".parse::<SamplerKind>().expect("a name"), SamplerKind::Ddim);
    assert_eq!(SamplerKind::DpmSolverPp2M.to_string(), "dpm++2m");
}

#[test]
fn each_class_has_its_own_defaults() {
    let read = |json: Value| Config::from_diffusers(&json).expect("a supported file");
    let of = |class: &str| read(json!({ "_class_name": class }));
    let sde = read(json!({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}));
    assert_eq!(sde.kind, SamplerKind::DpmSolverPp2MSde);
    let lcm = of("LCMScheduler");
    assert_eq!((lcm.beta_start, lcm.beta_schedule), (0.00085, BetaSchedule::ScaledLinear));
    assert_eq!(lcm.table(4).expect("a table").rows[0].clamp, None);
    let heun = of("HeunDiscreteScheduler");
    assert_eq!((heun.beta_end, heun.beta_schedule, heun.kind), (0.012, BetaSchedule::Linear, SamplerKind::Heun));
    assert_eq!(of("DDPMScheduler").table(4).expect("a table").rows[0].clamp, Some(1.0));
    let single = of("DPMSolverSinglestepScheduler");
    assert!(!single.lower_order_final && single.with_kind(SamplerKind::UniPc).table(4).is_ok());
    // Fields of the schedulers that a file was converted from.
    let carried = json!({"_class_name": "EulerDiscreteScheduler", "skip_prk_steps": false, "solver_type": "bh1",
        "algorithm_type": "dpmsolver", "variance_type": "learned", "solver_order": 3, "predict_x0": false});
    assert_eq!(read(carried).kind, SamplerKind::Euler);

    // Stable Diffusion's own: 51 calls for 50 steps.
    let stable = read(json!({"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "skip_prk_steps": true, "set_alpha_to_one": false, "steps_offset": 1,
        "clip_sample": false}));
    let table = stable.table(50).expect("a table");
    let timesteps: Vec<f32> = table.rows[..4].iter().map(|r| r.timestep).collect();
    assert_eq!((table.rows.len(), timesteps), (51, vec![981.0, 961.0, 961.0, 941.0]));
    assert_eq!((table.init_scale, table.noise), (1.0, false));
    // SDXL's: the first latents are wide, and the model sees them at unit variance.
    let table =
        Config { spacing: Some(Spacing::Leading), ..stable.with_kind(SamplerKind::Euler) }.table(50).expect("a table");
    assert!((table.init_scale - 13.158).abs() < 1e-3, "{}", table.init_scale);
    assert!((table.rows[0].input_scale * table.init_scale - 1.0).abs() < 1e-6);
}

#[test]
fn requests_that_cannot_be_met_say_so() {
    let told = |json: Value, words: [&str; 2]| {
        let text = Config::from_diffusers(&json).expect_err("refused").to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text:?} lacks one of {words:?}");
    };
    let ddim = |name: &str, value: Value| json!({ "_class_name": "DDIMScheduler", name: value });
    let dpm = |name: &str, value: Value| json!({ "_class_name": "DPMSolverMultistepScheduler", name: value });
    told(json!({}), ["HeunDiscreteScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler", "none"]);
    told(json!([1]), ["DDIMScheduler, DDPMScheduler", "none"]);
    told(json!({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}), ["a schedule of betas", "EDMEulerScheduler"]);
    told(ddim("beta_schedule", json!("cosine")), ["linear, scaled_linear, squaredcos_cap_v2", "got cosine"]);
    told(ddim("prediction_type", json!("flow_prediction")), ["epsilon, v_prediction, sample", "flow_prediction"]);
    told(ddim("timestep_spacing", json!("log")), ["leading, linspace, trailing", "log"]);
    let thresholding =
        |name: &str, value: Value| json!({"_class_name": "DDIMScheduler", "thresholding": true, name: value});
    told(thresholding("dynamic_thresholding_ratio", json!(1.5)), ["dynamic_thresholding_ratio", "1.5"]);
    told(thresholding("sample_max_value", json!(0.0)), ["sample_max_value", "0"]);
    told(ddim("trained_betas", json!([0.1, 0.2])), ["trained_betas: expected 1000 values", "got 2 values"]);
    let wrong = [vec![0.1; 999], vec![1.5]].concat();
    told(ddim("trained_betas", json!(wrong)), ["trained_betas: expected 1000 values of 0 to 1", "1.5 at step 999"]);
    // However long what is found, the line is short.
    let long = Config::from_diffusers(&ddim("trained_betas", json!(vec!["x"; 1000]))).expect_err("refused").to_string();
    assert!(long.contains("trained_betas") && long.len() < 300, "{long}");
    told(ddim("num_train_timesteps", json!("many")), ["num_train_timesteps", "many"]);
    told(ddim("num_train_timesteps", json!(u64::MAX)), ["num_train_timesteps", "18446744073709551615"]);
    told(ddim("beta_end", json!(1.5)), ["beta_end", "1.5"]);
    told(ddim("clip_sample_range", json!(-1)), ["clip_sample_range", "-1"]);
    told(ddim("steps_offset", json!(-1)), ["steps_offset", "-1"]);
    told(dpm("algorithm_type", json!("dpmsolver+")), ["dpmsolver++, sde-dpmsolver++", "got dpmsolver+"]);
    told(dpm("solver_order", json!(4)), ["1 to 3", "4"]);
    told(dpm("use_flow_sigmas", json!(true)), ["use_flow_sigmas", "true"]);
    let of = |class: &str, name: &str, value: Value| json!({ "_class_name": class, name: value });
    let single = "DPMSolverSinglestepScheduler";
    told(of("DDPMScheduler", "variance_type", json!("learned")), ["fixed_small", "learned"]);
    told(of("DDPMScheduler", "timestep_spacing", json!("quad")), ["with ddpm", "quad"]);
    told(
        json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true, "prediction_type": "sample"}),
        ["pndm", "sample"],
    );
    told(of("EulerAncestralDiscreteScheduler", "prediction_type", json!("sample")), ["euler-a", "sample"]);
    told(of("EulerDiscreteScheduler", "timestep_type", json!("continuous")), ["discrete", "continuous"]);
    told(of("EulerDiscreteScheduler", "sigma_max", json!(80.0)), ["sigma_max: expected null", "80.0"]);
    told(of("UniPCMultistepScheduler", "solver_order", json!(4)), ["1 to 3", "4"]);
    told(of("UniPCMultistepScheduler", "lower_order_final", json!(false)), ["lower_order_final", "false"]);
    told(of("LCMScheduler", "original_inference_steps", json!(0)), ["1 to 1000", "0"]);
    told(of("LCMScheduler", "timestep_scaling", json!(-1.0)), ["timestep_scaling", "-1"]);
    let both = json!({"_class_name": single, "use_karras_sigmas": true, "use_exponential_sigmas": true});
    told(both, ["use_karras_sigmas, use_exponential_sigmas", "at most one"]);

    let steps = |config: &Config, steps| config.table(steps).expect_err("refused").to_string();
    let offset = Config { steps_offset: 1, ..Config::default() };
    assert!(steps(&Config::default(), 0).contains("1 to 1000"));
    assert!(steps(&Config::default(), 1001).contains("1001"));
    assert!(steps(&offset, 1000).contains("timestep 1000"));
    assert!(steps(&offset.with_kind(SamplerKind::DpmSolverPp2M), 1000).contains("same timestep"));
    assert!(steps(&Config::default().with_kind(SamplerKind::Lcm), 51).contains("1 to 50"));
    assert!(steps(&Config::default().with_kind(SamplerKind::UniPc), 1001).contains("1 to 1000"));
    let unknown = "plms2".parse::<SamplerKind>().expect_err("refused").to_string();
    let names = "ddim, ddpm, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, dpm++3m, dpm++3m-sde, dpm++2s, lms, unipc, lcm, tcd, deis, \
        dpm2, dpm2-a, dpm++sde";
    assert!(unknown.contains(names) && unknown.contains("plms2"), "{unknown}");
}

/// Schedulers that are not run here leave their schedule to one that is, which says so until another is asked for.
#[test]
fn other_schedulers_are_replaced() {
    let read = |fields: Value| {
        let mut json = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"});
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Config::from_diffusers(&json).expect("a schedule of betas")
    };
    for (fields, kind, words) in [
        (json!({"_class_name": "SASolverScheduler"}), SamplerKind::DpmSolverPp2MSde, "SASolverScheduler"),
        (json!({"_class_name": "EDMEulerScheduler"}), SamplerKind::Euler, "EDMEulerScheduler"),
        (json!({"_class_name": "DDIMParallelScheduler"}), SamplerKind::Ddim, "DDIMParallelScheduler"),
        (json!({"_class_name": "DDPMParallelScheduler"}), SamplerKind::Ddpm, "DDPMParallelScheduler"),
        (json!({"_class_name": "PNDMScheduler", "skip_prk_steps": false}), SamplerKind::Pndm, "Runge and Kutta"),
        (json!({"_class_name": "PNDMScheduler"}), SamplerKind::Pndm, "Runge and Kutta"),
        (
            json!({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "solver_order": 3}),
            SamplerKind::DpmSolverPp3M,
            "algorithm_type dpmsolver",
        ),
        (
            json!({"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"}),
            SamplerKind::DpmSolverPp2MSde,
            "algorithm_type sde-dpmsolver++",
        ),
        (
            json!({"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}),
            SamplerKind::DpmSolverPp2S,
            "solver_order 3",
        ),
        (
            json!({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}),
            SamplerKind::Euler,
            "interpolation_type \"log_linear\"",
        ),
        (
            json!({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}),
            SamplerKind::UniPc,
            "solver_type \"bh1\"",
        ),
        (
            json!({"_class_name": "UniPCMultistepScheduler", "predict_x0": false}),
            SamplerKind::UniPc,
            "predict_x0 false",
        ),
        (
            json!({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}),
            SamplerKind::UniPc,
            "disable_corrector [0]",
        ),
    ] {
        let config = read(fields.clone());
        assert_eq!((config.kind, config.beta_end), (kind, 0.012), "{fields}");
        assert!(config.replaces.as_ref().is_some_and(|text| text.contains(words)), "{fields}: {:?}", config.replaces);
        assert!(config.table(5).is_ok(), "{fields}");
        // Who names a sampler knows what it is.
        assert_eq!(config.named(kind.name()).expect("a name").replaces, None);
        assert_eq!(config.with_kind(SamplerKind::Lms).replaces, None);
    }
    let own = json!({"_class_name": "UniPCMultistepScheduler", "predict_x0": true, "disable_corrector": [],
        "solver_p": null, "solver_type": "midpoint"});
    assert_eq!(read(own).replaces, None);
}

/// A schedule that ends in no signal can be begun with some predictions and samplers only; the others say which.
#[test]
fn schedules_without_signal_are_refused_where_it_is_divided_by() {
    let zero = Config {
        rescale_betas_zero_snr: true,
        prediction: Prediction::VPrediction,
        spacing: Some(Spacing::Trailing),
        ..Config::default()
    };
    assert!(zero.table(5).is_ok());
    let epsilon = Config { prediction: Prediction::Epsilon, ..zero.clone() };
    let text = epsilon.table(5).expect_err("refused").to_string();
    assert!(text.contains("timestep 999") && text.contains("v_prediction"), "{text}");
    assert!(Config { spacing: Some(Spacing::Leading), ..epsilon.clone() }.table(5).is_ok(), "it does not go there");
    assert!(epsilon.with_kind(SamplerKind::Euler).table(5).is_ok(), "diffusers' least signal");
    // Like their classes in diffusers, some samplers take the schedule as it was.
    let heun = zero.with_kind(SamplerKind::Heun);
    assert!(heun.leaves_signal() && !zero.leaves_signal());
    let plain = Config { rescale_betas_zero_snr: false, ..heun.clone() };
    assert_eq!(heun.table(5).expect("a table"), plain.table(5).expect("a table"));
}

#[test]
fn names_stand_for_settings() {
    let base = Config { beta_end: 0.012, ..Config::default() };
    let named = |name: &str| base.named(name).expect(name);
    for &kind in SamplerKind::ALL {
        let plain = named(kind.name());
        assert_eq!((plain.kind, plain.beta_end, plain.use_karras_sigmas), (kind, 0.012, false));
    }
    let karras = Config { use_exponential_sigmas: true, ..base.clone() }.named("dpm++2m-karras").expect("a name");
    assert_eq!((karras.kind, karras.use_karras_sigmas), (SamplerKind::DpmSolverPp2M, true));
    assert!(karras.table(5).is_ok());
    // DDIM has no levels of its own, and no such name.
    for wrong in ["ddim-karras", "euler-a-karras", "karras", "-karras"] {
        assert!(base.named(wrong).expect_err("refused").to_string().contains(wrong), "{wrong}");
    }
    // As DiT's own code: respaced to evenly spaced timesteps from the first to the last, nothing clamped.
    let table = named("iddpm").table(4).expect("a table");
    assert!(table.learned() && table.noise);
    let timesteps: Vec<f32> = table.rows.iter().map(|row| row.timestep).collect();
    assert_eq!(timesteps, [999.0, 666.0, 333.0, 0.0]);
    assert!(table.rows.iter().all(|row| row.clamp.is_none() && row.gain.is_some()));
    assert!(!named("ddpm").table(4).expect("a table").learned());
}
