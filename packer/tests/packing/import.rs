//! Quantized weights of research projects, against what their own code multiplies with.

use crate::common::{Dense, Scratch, fixture, load};
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::program::{Node, Op, Role};
use packer::emit::{Options, RangeSource, Report, pack};
use packer::pass::Split;
use packer::source::layout::{self, Elsewhere, Entry};
use packer::source::settings::Overrules;
use packer::source::{Checkpoint, view::Part};
use packer::unpack::unpack;
use packer::weights::Float;
use std::collections::BTreeMap;
use std::path::Path;

fn import(name: &str) -> std::path::PathBuf {
    fixture("imports").join(name)
}

/// The weights that a project's forward pass has, by the names of the checkpoint's file.
fn expected(project: &str) -> BTreeMap<String, Dense> {
    let prefix = format!("{project}/");
    let all = load(&import("expected.safetensors"));
    all.into_iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_owned(), tensor))).collect()
}

fn try_pack(scratch: &Scratch, model: &str, config: &str, file: &str, split: bool) -> packer::Result<Report> {
    let config = match config.strip_prefix("imports/") {
        Some(name) => import(name).display().to_string(),
        None => config.to_owned(),
    };
    let options = Options {
        model: fixture(model),
        q_config: Some(config),
        import: Some(import(file)),
        split: if split { vec![Split::Shortcut] } else { Vec::new() },
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    pack(&options, &mut |_| ())
}

/// The weights of the packed denoiser.
fn unpacked(scratch: &Scratch) -> BTreeMap<String, Dense> {
    let out = scratch.path("w.safetensors");
    unpack(&scratch.path("m.aqt"), &out, Some("unet"), Float::F32).unwrap();
    load(&out)
}

/// The name of a layer without its component and half.
fn layer(name: &str) -> &str {
    name.trim_start_matches("unet/").trim_end_matches(".weight_quantizer_0")
}

#[test]
fn weights_are_those_of_q_diffusions_forward() {
    let scratch = Scratch::new("qdiffusion");
    let report = try_pack(&scratch, "sd/v1", "w4a16", "qdiffusion.pth", false).unwrap();
    let (back, expected) = (unpacked(&scratch), expected("qdiffusion"));
    assert_eq!(expected.len(), 32);
    for (key, tensor) in &expected {
        let got = &back[&format!("{key}.weight")];
        assert_eq!(got.values, tensor.values, "{key}");
    }
    for line in &report.layers {
        let note = line.meta.note.as_deref();
        let is = note.is_some_and(|note| note.starts_with("imported"));
        assert_eq!(is, expected.contains_key(layer(&line.meta.name)), "{} {note:?}", line.meta.name);
        if is {
            assert_eq!((line.bits, &line.meta.method[..]), (4, "mse-4"), "{}", line.meta.name);
        }
    }
    // Split as the file is, and only that: the other levels have shortcuts, too.
    let halves = report.layers.iter().filter(|line| line.meta.name.ends_with("_0")).count();
    assert_eq!(halves, 2);
}

#[test]
fn activations_have_the_ranges_of_the_file() {
    let scratch = Scratch::new("import-ranges");
    let options = |symmetric| Options {
        model: fixture("sd/v1"),
        q_config: Some("w4a8".into()),
        import: Some(import("qdiffusion.pth")),
        activation_ranges: Some(RangeSource::Import { symmetric }),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let file = Checkpoint::open_file(&import("qdiffusion.pth"), &mut Vec::new()).unwrap();
    for symmetric in [None, Some(false), Some(true)] {
        let report = pack(&options(symmetric), &mut |_| ()).unwrap();
        let packed = Packed::open(scratch.path("m.aqt")).unwrap();
        let (mut fixed, mut free) = (0, 0);
        for line in report.layers.iter().filter(|line| line.meta.activation_bits == 8) {
            let name = format!("{}.activation_range", line.meta.name);
            let Some(index) = packed.tensors().iter().position(|t| t.name == name) else {
                let note = line.meta.note.as_deref().unwrap_or("");
                assert!(note.contains("activations in the range of each row"), "{name}: {note}");
                free += 1;
                continue;
            };
            let TensorView::F32(points) = packed.tensor(index) else { panic!("floats") };
            let half = if line.meta.name.ends_with("_0") { "_0" } else { "" };
            let quantizer = format!("model.{}.act_quantizer{half}", layer(&line.meta.name));
            let number = |what: &str| file.read(&format!("{quantizer}.{what}")).unwrap()[0];
            let zero = if symmetric == Some(true) { 128.0 } else { number("zero_point") };
            assert_eq!(points, [0.0, number("delta"), zero], "{name}");
            fixed += 1;
        }
        assert!(fixed > 10 && free > 10, "{fixed} {free}");
    }
    let error = |options: &Options| pack(options, &mut |_| ()).unwrap_err().to_string();
    assert!(error(&Options { import: None, ..options(None) }).contains("expected --import FILE, which has them"));
    // Qua2SeDiMo's files hold weights alone.
    let weights = Options { import: Some(import("qua2sedimo_mq.pt")), ..options(None) };
    assert!(error(&weights).contains("--act-range import: expected a file with act_quantizer.delta or act_func"));
}

#[test]
fn fused_projections_are_found_by_their_authors_names() {
    let scratch = Scratch::new("church");
    try_pack(&scratch, "layouts/church.ckpt", "w3a16", "qdiffusion_church.pth", false).unwrap();
    let back = unpacked(&scratch);
    let model = layout::open(&fixture("layouts/church.ckpt"), Elsewhere::default(), &Overrules::default()).unwrap();
    let own = &model.component("unet").weights;
    let results = Checkpoint::open_file(&import("expected.safetensors"), &mut Vec::new()).unwrap();
    let (mut found, mut heads) = (0, 0);
    for (key, tensor) in &back {
        let (source, part) = own.published(key);
        let layer = source.trim_start_matches("model.diffusion_model.").trim_end_matches(".weight");
        let name = format!("church/{layer}");
        let Some(shape) = results.shape(&name).filter(|_| source.ends_with(".weight")) else { continue };
        let entry = Entry {
            key: key.clone(),
            dims: tensor.shape.clone(),
            source: name.clone(),
            source_dims: shape.to_vec(),
            part: part.clone(),
        };
        let expected = results.renamed("church", &[entry]).unwrap().read(key).unwrap();
        assert_eq!(tensor.values, expected, "{key}");
        found += 1;
        heads += usize::from(!matches!(part, Part::Whole));
    }
    assert!(found >= 8 && heads >= 3, "{found} layers, {heads} of them parts");
}

#[test]
fn weights_are_those_of_qua2sedimos_forward() {
    let scratch = Scratch::new("qua2sedimo");
    let report = try_pack(&scratch, "sd/v1", "imports/qua2sedimo.json", "qua2sedimo_mq.pt", false).unwrap();
    let back = unpacked(&scratch);
    for (key, tensor) in expected("qua2sedimo") {
        assert_eq!(back[&format!("{key}.weight")].values, tensor.values, "{key}");
    }
    let mut methods: Vec<&str> = report.layers.iter().map(|line| line.meta.method.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    assert_eq!(methods, ["f16", "kmeans-3", "kmeans-4", "kmeans_all-3", "kmeans_all-4", "mse-3", "mse-4"]);
}

#[test]
fn convolutions_over_skip_connections_are_split_where_a_file_splits_them() {
    let scratch = Scratch::new("conv");
    let config = "imports/qua2sedimo_conv.json";
    let report = try_pack(&scratch, "sd/v1", config, "qua2sedimo_conv_mq.pt", false).unwrap();
    let seconds: Vec<&str> =
        report.layers.iter().map(|line| &line.meta.name[..]).filter(|name| name.ends_with("_0")).collect();
    let expected_seconds = [0, 1].map(|i| format!("unet/up_blocks.2.resnets.{i}.conv1.weight_quantizer_0"));
    assert_eq!(seconds, expected_seconds);
    let back = unpacked(&scratch);
    for (key, tensor) in expected("conv") {
        assert_eq!(back[&format!("{key}.weight")].values, tensor.values, "{key}");
    }
    // Who asks for other halves than the file has is told.
    let whole = Options {
        model: fixture("sd/v1"),
        q_config: Some("w4a16".into()),
        import: Some(import("qdiffusion.pth")),
        split: vec![Split::Conv],
        output: scratch.path("n.aqt"),
        ..Default::default()
    };
    let error = pack(&whole, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("conv1") && !error.contains('\n'), "{error}");
}

#[test]
fn each_kind_of_layer_is_split_by_its_name() {
    let scratch = Scratch::new("kinds");
    let of = |split: &[Split]| Options {
        model: fixture("sd/v1"),
        q_config: Some("w4a8".into()),
        split: split.to_vec(),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let seconds = |split: &[Split]| -> Vec<String> {
        let plan = packer::emit::explain(&of(split)).unwrap();
        plan.layers.into_iter().map(|layer| layer.name).filter(|name| name.ends_with("_0")).collect()
    };
    let (shortcuts, convs) = (seconds(&[Split::Shortcut]), seconds(&[Split::Conv]));
    assert!(shortcuts.len() == 6 && shortcuts.iter().all(|name| name.contains("conv_shortcut")));
    assert!(convs.len() == 6 && convs.iter().all(|name| name.contains("conv1")));
    assert_eq!(seconds(&[Split::Shortcut, Split::Conv]).len(), 12);
    // Each half has codes and a range of its own, and the model is packed, proved and run.
    pack(&of(&[Split::Conv]), &mut |_| ()).unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let program = packed.program(Role::Denoiser).unwrap();
    let ops = |name: &str| program.nodes.iter().filter(|node| node.op.name() == name).count();
    assert_eq!(ops("slice"), 12);
    let sliced = |node: &&Node| match node.op {
        Op::Quantize(op) => program.node_of(op.x).is_some_and(|x| program.nodes[x].op.name() == "slice"),
        _ => false,
    };
    assert_eq!(program.nodes.iter().filter(sliced).count(), 12);
    let error = packer::emit::explain(&of(&[Split::Linear])).unwrap_err().to_string();
    assert!(error.contains("--split=linear: expected a denoiser with linear layers over norms"), "{error}");
}

#[test]
fn shortcuts_are_split_on_request_and_come_back_whole() {
    let scratch = Scratch::new("split");
    let options = Options {
        model: fixture("sd/v1"),
        q_config: Some("w8a16".into()),
        split: vec![Split::Shortcut],
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let report = pack(&options, &mut |_| ()).unwrap();
    assert_eq!(report.layers.iter().filter(|line| line.meta.name.ends_with("_0")).count(), 6);
    let source = load(&fixture("sd/v1/unet/diffusion_pytorch_model.safetensors"));
    for (key, tensor) in source.iter().filter(|(key, _)| key.ends_with("conv_shortcut.weight")) {
        let got = &unpacked(&scratch)[key];
        let largest = tensor.values.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(got.values.iter().zip(&tensor.values).all(|(a, b)| (a - b).abs() < 0.02 * largest), "{key}");
    }
    // A configuration that names second halves has them split.
    let config = import("qua2sedimo.json").display().to_string();
    let named = Options { q_config: Some(config), split: Vec::new(), ..options.clone() };
    let plan = packer::emit::explain(&named).unwrap();
    let halves: Vec<_> = plan.layers.iter().filter(|layer| layer.name.ends_with("_0")).collect();
    assert_eq!(halves.iter().map(|layer| &layer.method[..]).collect::<Vec<_>>(), ["kmeans-3", "mse-3"]);
    assert!(halves.iter().all(|layer| layer.decided_by.as_ref().unwrap().contains("weight_quantizer_0")));
    let none = Options { model: fixture("dit/d2"), ..options };
    let error = pack(&none, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("--split: expected a denoiser with shortcuts over skip connections"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let scratch = Scratch::new("import-refused");
    let refusal = |model: &str, config: &str, file: &str| {
        let error = try_pack(&scratch, model, config, file, false).unwrap_err().to_string();
        assert!(!error.contains('\n') && scratch.entries().is_empty(), "{error}");
        error
    };
    for (model, config, file, expected) in [
        ("sd/v1", "w4a8", "expected.safetensors", "expected tensors with .weight_quantizer.alpha (Q-Diffusion) or"),
        ("sd/v1", "w2a16", "qdiffusion.pth", "expected steps for 2 bits; of files for more, say so"),
        ("sd/v1", "w4a8:kmeans", "qdiffusion.pth", "expected a configuration of uniform levels"),
        ("sd/v1", "w4a8", "qdiffusion_church.pth", "expected the weights of this model, under its own names"),
        ("layouts/church.ckpt", "w4a8", "qua2sedimo_mq.pt", "expected the weights of this model"),
        ("sd/v1", "f16", "qdiffusion.pth", "expected a configuration that makes codes of layers"),
    ] {
        let error = refusal(model, config, file);
        assert!(error.contains(expected), "{config} {file}: {error}");
    }
    assert!(Path::new(&import("qdiffusion.pth")).exists());
}

#[test]
fn the_research_scripts_flags_say_the_same() {
    let scratch = Scratch::new("flags");
    let run = |output: &str, flags: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_packer"));
        command.arg(fixture("sd/v1")).arg("-o").arg(scratch.path(output)).args(flags.split_whitespace());
        let done = command.output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let file = import("qdiffusion.pth").display().to_string();
    let theirs =
        format!("--weight_bit 4 --quant_act --act_bit 8 --split --a_sym --act-range import --cali_ckpt {file}");
    let ours = format!("--q-config w4a8 --split --act-sym --act-range import --import {file}");
    let resumed = theirs.replace("--act-range import", "--resume");
    for (output, flags) in [("a.aqt", &theirs), ("b.aqt", &ours), ("d.aqt", &resumed)] {
        let (done, error) = run(output, flags);
        assert!(done, "{error}");
    }
    let [a, b, d] = ["a.aqt", "b.aqt", "d.aqt"].map(|name| Packed::open(scratch.path(name)).unwrap());
    for other in [&a, &d] {
        assert_eq!(other.programs(), b.programs());
        assert_eq!(other.tensors(), b.tensors());
    }
    let noted = |flags: &str| run("e.aqt", &format!("--weight_bit 4 --split --cali_ckpt {file} {flags}"));
    let (done, note) = noted("--resume_w");
    assert!(done && note.contains("note: --resume_w changes nothing"), "{note}");
    let (done, note) = noted("--resume");
    assert!(done && note.contains("note: --resume takes weights alone"), "{note}");
    for flags in [
        "--weight_bit 4 --q-config w4a8",
        "--weight_bit 7",
        "--quant_act",
        "--calib c.safetensors",
        "--weight_bit 4 --quant_act --a_sym",
        "--weight_bit 4 --quant_act --act-intervals 2",
        "--weight_bit 4 --quant_act --act-axis timestep",
    ] {
        let (done, error) = run("c.aqt", flags);
        assert!(!done && error.starts_with("error: "), "{flags}: {error}");
    }
    assert!(!scratch.path("c.aqt").exists());
}

/// The weights of the packed DiT of `dit/d2` with `file` imported, or why there are none.
fn viditq(scratch: &Scratch, config: &str, file: &str) -> packer::Result<BTreeMap<String, Dense>> {
    try_pack(scratch, "dit/d2", config, file, false)?;
    let out = scratch.path("w.safetensors");
    unpack(&scratch.path("m.aqt"), &out, Some("transformer"), Float::F32).unwrap();
    Ok(load(&out))
}

#[test]
fn weights_are_those_of_vidit_qs_forward() {
    let scratch = Scratch::new("viditq");
    for (kind, config, file) in [
        ("int", "w8a8:min_max", "viditq_int_weight.pt"),
        ("ckpt", "w4a8:min_max", "viditq_ckpt.pth"),
        ("params", "w8a8:min_max", "viditq_quant_params.pth"),
    ] {
        let back = viditq(&scratch, config, file).unwrap();
        let all = load(&import("viditq_expected.safetensors"));
        let expected = all.iter().filter_map(|(key, t)| Some((key.strip_prefix(&format!("{kind}/"))?, t)));
        let mut compared = 0;
        for (layer, want) in expected {
            assert_eq!(back[&format!("{layer}.weight")].values, want.values, "{kind} {layer}");
            compared += 1;
        }
        assert_eq!(compared, 8);
    }
}

#[test]
fn fixed_ranges_of_vidit_q_are_curves_over_timesteps() {
    let scratch = Scratch::new("viditq-static");
    let options = |symmetric, file| Options {
        model: fixture("dit/d2"),
        q_config: Some("w4a4:min_max".into()),
        import: Some(import(file)),
        activation_ranges: Some(RangeSource::Import { symmetric }),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let all = load(&import("viditq_expected.safetensors"));
    for symmetric in [None, Some(true)] {
        pack(&options(symmetric, "viditq_static.pth"), &mut |_| ()).unwrap();
        let packed = Packed::open(scratch.path("m.aqt")).unwrap();
        let mut compared = 0;
        for (layer, want) in all.iter().filter_map(|(key, t)| Some((key.strip_prefix("static/")?, t))) {
            let name = format!("transformer/{layer}.activation_range");
            let index = packed.tensors().iter().position(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
            let TensorView::F32(points) = packed.tensor(index) else { panic!("floats") };
            let points = points.as_chunks::<3>().0;
            assert!(points.len() == if want.shape[0] == 1 { 1 } else { 20 }, "{layer}: {}", points.len());
            for (t, want) in want.values.as_chunks::<2>().0.iter().enumerate() {
                let at = points.iter().rev().find(|point| point[0] <= t as f32).unwrap();
                let zero = if symmetric == Some(true) { 8.0 } else { want[1] };
                assert_eq!([at[1], at[2]], [want[0], zero], "{layer} at {t}");
            }
            compared += 1;
        }
        assert_eq!(compared, 8);
    }
    // Ranges that rows take while running are none.
    let error = pack(&options(None, "viditq_ckpt.pth"), &mut |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("--act-range import: expected a file with act_quantizer.delta"), "{error}");
}

#[test]
fn what_vidit_q_did_to_weights_before_is_refused_if_it_cannot_be_undone() {
    let scratch = Scratch::new("viditq-refused");
    let error = |config, file| viditq(&scratch, config, file).unwrap_err().to_string();
    let told = error("w8a8:min_max", "viditq_rotated.pt");
    assert!(told.contains("expected this model's weights, neither smoothed nor rotated before"), "{told}");
    let told = error("w8a8:min_max", "viditq_quant_params_rotated.pth");
    assert!(told.contains("expected steps of this model's rows in 8 bits, neither smoothed nor rotated"), "{told}");
    let told = error("w4a8:min_max", "viditq_quant_params.pth");
    assert!(told.contains("expected steps of this model's rows in 4 bits"), "{told}");
    let told = error("w4a8:min_max", "viditq_smoothed.pth");
    assert!(told.contains("expected a layer that was not smoothed; --smooth"), "{told}");
    let told = error("w4a8:min_max", "viditq_int_weight.pt");
    assert!(told.contains("expected codes of 4 bits; of files with more, say so: --q-config w8a8"), "{told}");
    let told = error("w3a8:min_max", "viditq_ckpt.pth");
    assert!(told.contains("of 4, 6 and 8 bits") && told.contains("for 3 bits"), "{told}");
    assert!(scratch.entries().is_empty());
}
