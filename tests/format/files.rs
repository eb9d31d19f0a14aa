//! Files that travel inside a packed file: found by name, covered by every check, and of no use to programs.

use aquatint::Error;
use aquatint::model::Model;
use aquatint::raw::format::meta::{Conditioning, TextEncoderMeta, TextLength, TextMeta};
use aquatint::raw::format::{Meta, Packed, TensorKind, Writer};
use aquatint::raw::program::{Dim, Input, InputKind, Node, Op, Parameter, Program, Role, Tensor, Value};
use common::tiny::{self, AlignedBytes, reseal, sections};
use std::path::PathBuf;

const TENSORS: usize = 1;
const RECORD: usize = 64;
const JSON: &[u8] = b"{\"version\": \"1.0\"}\n";
const FILES: [(&str, &[u8]); 3] =
    [("tokenizer/tokenizer.json", JSON), ("tokenizer_2/tokenizer.json", &[0xff; 65]), ("one", &[7])];

fn path(test: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("files.{test}.{}.aqt", std::process::id()))
}

fn written(test: &str, files: &[(&str, &[u8])], meta: &Meta) -> aquatint::Result<AlignedBytes> {
    let path = path(test);
    tiny::write_with(&path, files, meta)?;
    let bytes = std::fs::read(&path).expect("the file was just written");
    std::fs::remove_file(&path).expect("the file was just written");
    Ok(AlignedBytes::new(&bytes))
}

fn sound(test: &str) -> AlignedBytes {
    written(test, &FILES, &tiny::meta()).expect("sound")
}

/// META of a pipeline whose encoder has the tokenizer `name`.
fn with_tokenizer(name: &str) -> Meta {
    let encoder = TextEncoderMeta {
        tokenizer: name.into(),
        tokens: 77,
        length: TextLength::Padded,
        lower_case: false,
        begin: Some(1),
        end: 2,
        pad: 2,
        features: 4,
        pooled: 0,
    };
    let denoiser = Conditioning { context: vec![0], context_2: None, pooled: None, sizes: Vec::new() };
    let mut meta = tiny::meta();
    meta.pipeline.text = Some(TextMeta {
        encoders: vec![encoder],
        zero_negative: false,
        null_caption: None,
        negative_as_long: false,
        denoiser,
    });
    meta
}

#[test]
fn files_come_back_by_name() {
    let (file, plain) = (sound("names"), tiny::bytes());
    let (packed, plain) = (Packed::new(&file).expect("sound"), Packed::new(&plain).expect("sound"));
    packed.verify().expect("sound");
    for (name, bytes) in FILES {
        assert_eq!(packed.bytes(name), Some(bytes), "{name}");
        assert_eq!(plain.bytes(name), None, "{name}");
    }
    let weights = plain.tensors();
    for name in ["", "tokenizer", "tokenizer/tokenizer.jso", &weights[0].name] {
        assert_eq!(packed.bytes(name), None, "{name}");
    }
    assert_eq!(packed.tensors()[..weights.len()], *weights);
    for (info, (name, bytes)) in packed.tensors()[weights.len()..].iter().zip(FILES) {
        assert_eq!((info.name.as_str(), info.kind, &info.dims[..]), (name, TensorKind::Bytes, &[bytes.len()][..]));
        assert_eq!((info.bytes, info.offset % 64, info.kind.name()), (bytes.len(), 0, "bytes".into()));
    }
}

#[test]
fn verify_covers_them() {
    let file = sound("verify");
    let packed = Packed::new(&file).expect("sound");
    for (name, bytes) in FILES {
        let info = packed.tensors().iter().find(|t| t.name == name).expect(name);
        for at in [0, bytes.len() - 1] {
            let mut damaged = file.clone();
            damaged.as_mut()[4096 + info.offset + at] ^= 1;
            let opened = Packed::new(&damaged).expect("weights and files are trusted until verified");
            let message = opened.verify().expect_err(name).to_string();
            assert!(message.contains("DATA section, byte 0: hash"), "{message}");
        }
    }
}

/// Whatever the bits of their records are, the file is refused or as good as another sound one.
#[test]
fn hostile_records_are_refused_or_sound() {
    let file = sound("hostile");
    let n = Packed::new(&file).expect("sound").tensors().len();
    let table = sections(file.as_ref())[TENSORS].0 as usize;
    let (mut opened, mut refused) = (0, 0);
    for bit in 0..FILES.len() * RECORD * 8 {
        let mut damaged = file.clone();
        damaged.as_mut()[table + (n - FILES.len()) * RECORD + bit / 8] ^= 1 << (bit % 8);
        reseal(damaged.as_mut());
        match Packed::new(&damaged) {
            Err(Error::Format { .. }) => refused += 1,
            Err(other) => panic!("bit {bit}: {other}"),
            Ok(packed) => {
                opened += 1;
                packed.verify().expect("a kind that the bytes fit");
            }
        }
    }
    // No bit can change alone: every field is checked against another or against zero.
    assert_eq!((opened, refused), (0, FILES.len() * RECORD * 8));
}

#[test]
fn names_are_unique() {
    let twice = [FILES[0], FILES[1], (FILES[0].0, &b"other"[..])];
    let message = written("twice", &twice, &tiny::meta()).err().expect("refused").to_string();
    assert!(message.contains("tokenizer/tokenizer.json: expected a file of bytes once, got another"), "{message}");
    assert!(!path("twice").exists());
}

#[test]
fn tokenizers_that_meta_names_are_there() {
    for name in [FILES[0].0, FILES[1].0, ""] {
        written("named", &FILES, &with_tokenizer(name)).expect(name);
    }
    let weight = "transformer.time.weight";
    assert!(Packed::new(sound("weight")).expect("sound").tensors().iter().any(|t| t.name == weight));
    for name in ["tokenizer", weight] {
        let message = written("absent", &FILES, &with_tokenizer(name)).err().expect(name).to_string();
        let expected = format!("META section, byte 0: tokenizer: expected a file of bytes in DATA, got {name:?}");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn programs_cannot_use_them() {
    let path = path("program");
    let mut writer = Writer::create(&path).expect("the temporary directory takes files");
    let tensor = Tensor(writer.bytes("file", &[0; 32]).expect("the temporary directory takes files"));
    let inputs =
        vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)] }];
    let nodes =
        vec![Node { op: Op::Parameter(Parameter { tensor, ..Parameter::default() }), path: "p".into(), wide: false }];
    let program = Program { role: Role::Denoiser, inputs, nodes, output: Value(1), phases: Default::default() };
    let error = writer.finish(&[program], &tiny::meta()).expect_err("refused");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let message = error.to_string();
    assert!(message.ends_with("tensor: expected a tensor of weights, got a file of bytes"), "{message}");
}

#[test]
fn text_encoders_of_meta_are_bounded() {
    let refused = |change: &dyn Fn(&mut TextMeta)| {
        let mut meta = with_tokenizer("");
        change(meta.pipeline.text.as_mut().expect("just set"));
        let file = written("encoders", &FILES, &meta).expect("sound");
        let packed = Packed::new(&file).expect("sound");
        Model::new(&packed).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let meta = "not a sound .aqt file: META section, byte 0: ";
    assert_eq!(refused(&|text| text.encoders.clear()), format!("{meta}encoders: expected 1 to 2 text encoders, got 0"));
    let three = |text: &mut TextMeta| text.encoders = vec![text.encoders[0].clone(); 3];
    assert_eq!(refused(&three), format!("{meta}encoders: expected 1 to 2 text encoders, got 3"));
    // A text encoder may be left out, and is then no wider than any is.
    let long = |text: &mut TextMeta| text.encoders[0].tokens = u32::MAX;
    assert_eq!(refused(&long), format!("{meta}tokens: expected 3 to 32768, got 4294967295"));
    let wide = |text: &mut TextMeta| text.encoders[0].features = u32::MAX;
    assert_eq!(refused(&wide), format!("{meta}features: expected 1 to 65536, got 4294967295"));
    let named = |text: &mut TextMeta| text.encoders[0].tokenizer = FILES[0].0.into();
    let (got, expected) = (refused(&named), format!("{meta}tokenizer: expected none, as there is no text encoder"));
    assert!(got.starts_with(&expected), "{got}");
}
