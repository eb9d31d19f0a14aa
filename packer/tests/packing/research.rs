//! Flags of the research scripts: each has its effect, or says in one line why it has none.

use crate::common::{Scratch, fixture, pack_as};
use aquatint::options::SamplingOptions;
use aquatint::raw::format::Packed;
use packer::calibrate::{Settings, calibrate};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, args: &[&str]) -> Output {
    let model = fixture("dit/d2");
    let mut command = Command::new(env!("CARGO_BIN_EXE_packer"));
    command.arg(model).args(args).args(["-o", "m.aqt"]).current_dir(dir).output().unwrap()
}

/// The configuration in words of what the command packed, and what it noted.
fn packed(dir: &Path, args: &[&str]) -> (String, String) {
    let done = run(dir, args);
    let error = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{args:?}: {error}");
    (Packed::open(dir.join("m.aqt")).unwrap().meta().quantization.config.clone(), error)
}

#[test]
fn flags_that_mean_something_have_their_effect() {
    let scratch = Scratch::new("research");
    let dir = &scratch.0;
    let mut settings = Settings::new(fixture("dit/d2"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(4), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (2, 2);
    calibrate(&settings, &mut |_| true).unwrap();
    let base = ["--weight_bit", "8", "--quant_act", "--act_bit", "8", "--calib", "c.safetensors"];
    let with = |more: &[&str]| packed(dir, &[&base[..], more].concat()).0;
    assert!(with(&[]).contains("w8a16 with 8-bit activations,"), "{}", with(&[]));
    for (flags, expected) in [
        (&["--running_stat"][..], "fixed range by min-max averaged over calls with momentum 0.95"),
        (&["--act-range", "ema"], "fixed range by min-max averaged over calls with momentum 0.95"),
        (&["--running_stat", "--a_sym"], "fixed symmetric range by min-max averaged over calls with momentum 0.95"),
        (&["--a_min_max"], "activations in a fixed range by min-max"),
        (&["--a_min_max", "--a_sym"], "activations in a fixed symmetric range by min-max"),
        (&["--quant_mode", "qdiff"], "w8a16:mse_80 with 8-bit activations"),
        (
            &["--quant_mode", "qdiff", "--sm_abit", "16"],
            "attention in floats, queries, keys and values rounded to 8 bits, probabilities rounded to 16 bits",
        ),
        (&["--sm-abit", "8", "--running_stat"], "values rounded to 8 bits, probabilities rounded to 8 bits"),
        (&["--softmax-bits", "8", "--qkv-bits", "6"], "values rounded to 6 bits, probabilities rounded to 8 bits"),
    ] {
        let args = [&base[..], flags].concat();
        let words = packed(dir, &args).0;
        assert!(words.contains(expected), "{flags:?}: {words}");
    }
    let (words, _) = packed(dir, &["--weight_bit", "8", "--sm_abit", "8"]);
    assert!(words.ends_with("attention in floats, probabilities rounded to 8 bits"), "{words}");
    let (_, notes) = packed(dir, &[&base[..], &["--running_stat", "--sm_abit", "16"]].concat());
    assert!(notes.contains("note: ranges of attention are taken while running"), "{notes}");
    let (_, notes) = packed(dir, &["--weight_bit", "4", "--ptq"]);
    assert!(notes.contains("note: --ptq changes nothing"), "{notes}");
    pack_as(&fixture("dit/d2"), Some("w4a16"), &scratch.path("plain.aqt")).unwrap();
    assert_eq!(fs::read(dir.join("m.aqt")).unwrap(), fs::read(dir.join("plain.aqt")).unwrap());
}

#[test]
fn what_packing_cannot_do_is_refused_with_the_remedy() {
    let scratch = Scratch::new("research-refused");
    for (flags, expected) in [
        (&["--cali_st", "20"][..], "error: --cali_st: expected packer calibrate MODEL --cali-st N"),
        (&["--cali_n", "256"], "error: --cali_n: expected packer calibrate MODEL --cali-n N"),
        (&["--cali_batch_size", "32"], "error: --cali_batch_size: expected packer calibrate MODEL --cali-batch N"),
        (&["--cali_iters", "20000"], "error: --cali_iters: expected no iterations"),
        (&["--cali_data_path", "x.pt"], "error: --cali_data_path: expected --calib FILE by packer calibrate"),
        (&["--rs_sm_only", "--running_stat"], "error: --rs_sm_only: expected not that flag: softmax has steps"),
        (&["--sm_abit", "12"], "error: invalid value '12' for '--softmax-bits <BITS>'"),
        (&["--qkv-bits", "5"], "error: --qkv-bits: expected 6 or 8 bits"),
        (&["--sm_abit", "8", "--int8-attention"], "error: --softmax-bits: expected no --int8-attention"),
        (&["--running_stat"], "error: --act-range: expected --calib FILE"),
        (&["--running_stat", "--a_min_max"], "error: the argument"),
        (&["--resume"], "error: the following required arguments"),
        (&["--quant_mode", "squant"], "error: invalid value 'squant'"),
        (&["--split"], "error: --split: expected a denoiser with shortcuts"),
        (&["--split=shortcut,conv"], "error: --split: expected a denoiser with shortcuts"),
        (&["--split=conv"], "error: --split=conv: expected a denoiser with 3x3 convolutions over norms"),
        (&["--split=all"], "shortcut, conv or linear is expected"),
        (&["--cali_ckpt", "none.pth"], "none.pth"),
    ] {
        let done = run(&scratch.0, &[&["--weight_bit", "8"], flags].concat());
        let error = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{flags:?}: {error}");
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert!(scratch.entries().is_empty());
    }
}
