//! Features of prompts that others saved, and files packed without text encoders. The fixtures and their maker are in
//! `tests/fixtures/text`.

use crate::common::{Scratch, fixture};
use aquatint::Model;
use aquatint::pipeline::{Prompts, Request};
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use packer::embeds::convert;
use packer::emit::{Options, pack};
use packer::source::donors::Donors;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::path::Path;

fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView| view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec(), values(&view))).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn counted(numbers: impl Iterator<Item = usize>) -> Vec<f32> {
    numbers.map(|k| k as f32 / 8.0).collect()
}

const MASK: [f32; 15] = [1., 1., 0., 0., 0., 1., 1., 1., 1., 1., 1., 0., 0., 0., 0.];

#[test]
fn saved_features_become_inputs() {
    let scratch = Scratch::new("embeds");
    let output = scratch.path("embeds.safetensors");
    convert(&fixture("text/text_embeds.pth"), &output).unwrap();
    // Of 3 x 2 x 1 x 5 x 4 values, the prompts are the even runs of 20.
    let side = |side: usize| counted((0..120).filter(|k| k / 20 % 2 == side));
    let expected = [
        ("negative_prompt_embeds", vec![3, 5, 4], side(1)),
        ("negative_prompt_mask", vec![3, 5], MASK.to_vec()),
        ("prompt_embeds", vec![3, 5, 4], side(0)),
        ("prompt_mask", vec![3, 5], MASK.to_vec()),
    ];
    assert_eq!(tensors(&output), expected.map(|(name, dims, values)| (name.to_owned(), dims, values)));

    convert(&fixture("text/diffusers_embeds.pt"), &output).unwrap();
    let expected = [
        ("negative_prompt_embeds", vec![2, 5, 3], counted(0..30)),
        ("pooled", vec![2, 4], counted(0..8)),
        ("prompt_embeds", vec![2, 5, 3], counted(0..30)),
        ("prompt_mask", vec![2, 5], MASK[..10].to_vec()),
    ];
    assert_eq!(tensors(&output), expected.map(|(name, dims, values)| (name.to_owned(), dims, values)));
}

#[test]
fn other_files_are_refused() {
    let scratch = Scratch::new("embeds-refused");
    let input = scratch.path("in.safetensors");
    let refused = |tensors: &[(&str, &[usize])], words: &[&str]| {
        let zeros = vec![0u8; 4096];
        let view = |dims: &[usize]| {
            TensorView::new(Dtype::F32, dims.to_vec(), &zeros[..4 * dims.iter().product::<usize>()]).unwrap()
        };
        let views = tensors.iter().map(|(name, dims)| (*name, view(dims)));
        fs::write(&input, safetensors::serialize(views, None).unwrap()).unwrap();
        let message = convert(&input, &scratch.path("out")).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)) && message.len() < 300, "{message}");
        assert!(!scratch.path("out").exists());
    };
    refused(&[("y", &[2, 2, 5, 4])], &["y", "[n, 2, 1, tokens, features]", "[2, 2, 5, 4]"]);
    refused(&[("y", &[2, 2, 1, 5, 4]), ("mask", &[2, 6])], &["mask", "[2, 5]", "[2, 6]"]);
    refused(&[("weight", &[4])], &["weight", "prompt_attention_mask"]);
    refused(&[("pooled", &[1, 4])], &["a tensor y or prompt_embeds"]);
    fs::write(&input, "no tensors").unwrap();
    assert!(convert(&input, &scratch.path("out")).is_err());
    let same = convert(&fixture("text/text_embeds.pth"), &fixture("text/text_embeds.pth")).unwrap_err().to_string();
    assert!(same.contains("not an input"), "{same}");
}

/// Of text encoders that are left out, the configuration alone is read; the rest of the file is the same.
#[test]
fn text_encoders_can_be_left_out() {
    let scratch = Scratch::new("without-text");
    let packed = |name: &str, without_text: bool, break_it: bool| {
        let model = scratch.path(name);
        crate::common::copy_folder(&fixture("sd/xl"), &model);
        if break_it {
            for folder in ["text_encoder", "text_encoder_2"] {
                for entry in fs::read_dir(model.join(folder)).unwrap() {
                    let path = entry.unwrap().path();
                    if path.file_name().unwrap() != "config.json" {
                        fs::remove_file(path).unwrap();
                    }
                }
            }
        }
        let output = scratch.path(&format!("{name}.aqt"));
        let donors = Donors { without_text, ..Donors::default() };
        pack(&Options { model, donors, output: output.clone(), ..Options::default() }, &mut |_| ()).unwrap();
        Packed::open(&output).unwrap()
    };
    let (whole, without) = (packed("whole", false, false), packed("without", true, true));
    let names = |packed: &Packed<FileBytes>| packed.tensors().iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    let rest: Vec<_> = names(&whole).into_iter().filter(|name| !name.starts_with("t")).collect();
    assert_eq!(names(&without), rest);
    assert!(names(&whole).iter().any(|name| name.starts_with("text_encoder_2/")));
    let model = Model::verify(&without).unwrap();
    let text = model.text.as_ref().unwrap();
    assert!(text.encoders.iter().all(|e| !e.encodes && e.tokenizer.is_none()));
    assert!(text.encoders().unwrap_err().to_string().contains("aquatint encode"));
    let widths = |model: &Model<'_, FileBytes>| {
        model.text.as_ref().unwrap().encoders.iter().map(|e| [e.tokens, e.features, e.pooled]).collect::<Vec<_>>()
    };
    assert_eq!(widths(&model), widths(&Model::verify(&whole).unwrap()));
    let request = Request::new(&model, Prompts::blank(&model, 1));
    assert_eq!(request.prompts.len(), 1);
}
