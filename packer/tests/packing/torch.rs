//! Files of `torch.save`: every element type, layout and container against safetensors twins that torch made, Lightning
//! checkpoints with classes nobody has, and a diffusers directory of `.bin` files that packs like its twin.

use crate::common::{Scratch, fixture, model, pack_as};
use aquatint::raw::format::Packed;
use packer::source::{Checkpoint, open_checkpoint};
use safetensors::Dtype;
use std::fs;
use std::path::Path;

fn open(name: &str) -> Checkpoint {
    open_at(&fixture("torchfiles").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn open_at(path: &Path) -> packer::Result<Checkpoint> {
    Ok(open_checkpoint(path, &mut Vec::new())?)
}

/// The message with which a file of `contents` is refused.
fn refusal(name: &str, contents: &[u8]) -> String {
    let scratch = Scratch::new(&format!("torch-{name}"));
    let path = scratch.path(name);
    fs::write(&path, contents).unwrap();
    let message = open_at(&path).expect_err(name).to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(name), "{message}");
    message
}

#[test]
fn every_type_and_layout_reads_as_its_safetensors_twin() {
    let twin = open("kinds.safetensors");
    for name in ["kinds.zip.pt", "kinds.legacy.pt", "kinds.v4.pt"] {
        let torch = open(name);
        assert_eq!(torch.keys().collect::<Vec<_>>(), twin.keys().collect::<Vec<_>>(), "{name}");
        for key in twin.keys() {
            assert_eq!((torch.dtype(key), torch.shape(key)), (twin.dtype(key), twin.shape(key)), "{name}: {key}");
            let float = matches!(twin.dtype(key), Some(Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16));
            if float {
                assert_eq!(torch.read(key).unwrap(), twin.read(key).unwrap(), "{name}: {key}");
                assert!(torch.read_ints(key).is_err());
            } else {
                assert_eq!(torch.read_ints(key).unwrap(), twin.read_ints(key).unwrap(), "{name}: {key}");
                let message = torch.read(key).unwrap_err().to_string();
                assert!(message.contains(name) && message.contains("f16, bf16, f32 or f64"), "{message}");
            }
        }
    }
    assert_eq!(twin.read_ints("types.int8").unwrap(), (-7..8).collect::<Vec<_>>());
    assert_eq!(twin.read_ints("types.uint8").unwrap(), [0, 1, 254, 255]);
    assert_eq!(twin.read_ints("types.bool").unwrap().iter().sum::<i64>(), 7);
}

#[test]
fn names_are_the_keys_on_the_way() {
    let torch = open("kinds.zip.pt");
    assert_eq!(torch.component(), "kinds.zip.pt");
    for (key, shape) in [
        ("parameter", &[3][..]),
        ("nested.7.w", &[2]),
        ("nested.list.0", &[1]),
        ("nested.tuple.0", &[1]),
        ("layout.scalar", &[]),
        ("layout.empty", &[0, 3]),
        ("layout.transposed", &[6, 4]),
        ("layout.unfolded", &[4, 3]),
    ] {
        assert_eq!(torch.shape(key), Some(shape), "{key}");
    }
    for key in ["nested", "nested.epoch", "numpy", "array", "nested.set", "storage"] {
        assert!(!torch.has(key), "{key}");
        assert!(torch.read(key).unwrap_err().to_string().contains("expected a tensor"));
    }
    let message = torch.read("array").unwrap_err().to_string();
    assert!(message.contains("an object numpy.") && message.contains("not read"), "{message}");
    assert!(torch.read("storage").unwrap_err().to_string().contains("a storage, which is not read"));
}

#[test]
fn rows_are_parts_of_the_whole() {
    let torch = open("kinds.legacy.pt");
    for key in
        ["layout.base", "layout.transposed", "layout.sliced", "layout.expanded", "layout.permuted", "layout.unfolded"]
    {
        let whole = torch.read(key).unwrap();
        let rows = torch.shape(key).unwrap()[0];
        let row = whole.len() / rows;
        for start in 0..=rows {
            for end in start..=rows {
                assert_eq!(
                    torch.read_rows(key, start..end).unwrap(),
                    whole[start * row..end * row],
                    "{key} {start}..{end}"
                );
            }
        }
        let message = torch.read_rows(key, 1..rows + 1).unwrap_err().to_string();
        assert!(message.contains(&format!("rows 1..{}", rows + 1)), "{message}");
    }
    assert!(torch.read_rows("layout.scalar", 0..0).is_err());
    assert!(torch.same("layout.base", "layout.base"));
    assert!(!torch.same("layout.base", "layout.transposed") && !torch.same("layout.base", "absent"));
}

#[test]
fn lightning_checkpoints_give_their_weights_and_averages() {
    for name in ["lightning.zip.ckpt", "lightning.legacy.ckpt"] {
        let whole = open(name);
        assert!(whole.has("optimizer_states.0.state.0.exp_avg"), "{name}");
        assert!(!whole.keys().any(|k| k.contains("keeper") || k.contains("callbacks")), "{name}");
        let message = whole.read("keeper").unwrap_err().to_string();
        assert!(message.contains("author.private.Keeper") || message.contains("copyreg"), "{message}");
        let key = "model.diffusion_model.time_embed.0.weight";
        let outer = whole.ema(&format!("state_dict.{key}")).unwrap();
        assert_eq!(outer.as_deref(), Some("state_dict.model_ema.diffusion_modeltime_embed0weight"));

        let state = whole.below("state_dict").unwrap();
        assert_eq!(state.keys().count(), 10);
        assert_eq!(state.read("scale_factor").unwrap(), [0.2458]);
        let average = state.ema(key).unwrap().unwrap();
        assert_eq!(average, "model_ema.diffusion_modeltime_embed0weight");
        let (raw, smooth) = (state.read(key).unwrap(), state.read(&average).unwrap());
        assert!(raw.iter().zip(&smooth).all(|(raw, smooth)| (0.9 * raw - smooth).abs() < 1e-6), "{name}");
        for key in ["betas", "model.absent", "model_ema.decay"] {
            assert_eq!(state.ema(key).unwrap(), None);
        }
        let message = state.below("ema").unwrap_err().to_string();
        assert!(message.contains("tensors in ema"), "{message}");
    }
}

#[test]
fn an_average_must_have_its_weight_s_shape() {
    let scratch = Scratch::new("torch-ema");
    let path = scratch.path("m.safetensors");
    let dense = |n: usize| crate::common::Dense { shape: vec![n], values: vec![0.0; n] };
    let tensors = [("model.a.b".to_owned(), dense(2)), ("model_ema.ab".to_owned(), dense(3))];
    crate::common::save(&path, &tensors.into());
    let message = open_at(&path).unwrap().ema("model.a.b").unwrap_err().to_string();
    assert!(message.contains("model_ema.ab") && message.contains("[2]") && message.contains("[3]"), "{message}");
}

#[test]
fn foreign_code_is_carried_and_never_run() {
    for name in ["hostile.zip.pt", "hostile.legacy.pt"] {
        let torch = open(name);
        assert_eq!(torch.keys().collect::<Vec<_>>(), ["weight"]);
        let message = torch.read("evil").unwrap_err().to_string();
        assert!(message.contains("an object posix.system, which is not read"), "{message}");
    }
}

#[test]
fn other_files_are_refused_with_what_they_are() {
    for (name, contents, words) in [
        ("empty.pt", &b""[..], "an empty file"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("plain.pt", b"\x80\x02}q\x00.", "another pickle; save the model's state_dict()"),
        ("text.pt", b"hello", "safetensors file or what torch.save writes"),
        ("tar.pt", &[&[b'x'; 257][..], b"ustar\0"].concat(), "a tar archive"),
    ] {
        let message = refusal(name, contents);
        assert!(message.contains(words), "{message}");
    }
    let whole = fs::read(fixture("torchfiles/kinds.zip.pt")).unwrap();
    let message = refusal("cut.ckpt", &whole[..whole.len() - 100]);
    assert!(message.contains("cut.ckpt: archive: expected a directory at its end"), "{message}");
    let module = open_at(&fixture("torchfiles/module.pt")).unwrap_err().to_string();
    assert!(module.contains("torch.nn.modules.linear.Linear") && module.contains("state_dict()"), "{module}");
    let missing = open_at(Path::new("no-such.ckpt")).unwrap_err().to_string();
    assert!(missing.contains("no-such.ckpt"), "{missing}");
    // Formats are told by contents.
    let scratch = Scratch::new("torch-names");
    fs::copy(fixture("torchfiles/kinds.zip.pt"), scratch.path("a.safetensors")).unwrap();
    fs::copy(fixture("torchfiles/kinds.safetensors"), scratch.path("b.ckpt")).unwrap();
    let [a, b] = ["a.safetensors", "b.ckpt"].map(|n| open_at(&scratch.path(n)).unwrap());
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
}

/// A copy of fixture model d1p1 whose weights are `.bin` files.
fn bin_model(scratch: &Scratch) -> std::path::PathBuf {
    let copy = scratch.copy_of("d1p1");
    for component in ["transformer", "vae"] {
        for entry in fs::read_dir(copy.join(component)).unwrap().map(|e| e.unwrap()) {
            if entry.file_name().to_string_lossy().contains("safetensors") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        for entry in fs::read_dir(fixture("torchfiles/d1p1").join(component)).unwrap().map(|e| e.unwrap()) {
            fs::copy(entry.path(), copy.join(component).join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[test]
fn bin_directories_pack_like_their_safetensors_twins() {
    let scratch = Scratch::new("torch-bin");
    let copy = bin_model(&scratch);
    for spec in ["f32", "w4a8:kmeans"] {
        let (ours, twins) = (scratch.path("ours.aqt"), scratch.path("twins.aqt"));
        pack_as(&copy, Some(spec), &ours).unwrap_or_else(|e| panic!("{spec}: {e}"));
        pack_as(&model("d1p1"), Some(spec), &twins).unwrap();
        let [ours, twins] = [ours, twins].map(|f| Packed::new(aquatint::raw::mmap::open(&f).unwrap()).unwrap());
        ours.verify().unwrap();
        assert!(ours.data() == twins.data(), "{spec}: weights differ");
        assert_eq!(format!("{:?}", ours.tensors()), format!("{:?}", twins.tensors()), "{spec}");
        assert_eq!(format!("{:?}", ours.programs()), format!("{:?}", twins.programs()), "{spec}");
        let meta = |p: &Packed<_>| {
            let mut meta = p.meta().clone();
            let bins = meta.sources.iter().filter(|s| s.file.ends_with(".bin")).count();
            meta.sources.clear();
            (serde_json::to_string(&meta).unwrap(), bins)
        };
        assert_eq!((meta(&ours).0, meta(&ours).1, meta(&twins).1), (meta(&twins).0, 3, 0), "{spec}");
    }
}

#[test]
fn shards_of_bin_files_must_agree_with_their_index() {
    let scratch = Scratch::new("torch-shards");
    let copy = bin_model(&scratch);
    let index = copy.join("transformer/diffusion_pytorch_model.bin.index.json");
    let original = fs::read_to_string(&index).unwrap();
    fs::write(&index, original.replacen("00001-of-00002", "00002-of-00002", 1)).unwrap();
    let message = pack_as(&copy, None, &scratch.path("out.aqt")).unwrap_err().to_string();
    assert!(message.contains("bin.index.json") && message.contains("00002-of-00002"), "{message}");
}
