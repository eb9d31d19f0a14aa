//! What of a file is on the device, and when: each program's weights while something is bound to it, so that a run takes no more
//! memory than its largest program, which is what was announced.

use aquatint::error::ErrorKind;
use aquatint::model::Model;
use aquatint::pipeline::{Embeddings, Event, Output, Plans, Prompts, Request, Session, Texts};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cuda::{Cuda, CudaSizing};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Program, Role};
use aquatint::raw::text::PromptStyle;
use common::emulated::Emulated;
use common::fixture::pack_as;
use common::repository;
use packer::emit::Options;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

type File = Packed<FileBytes>;
type Device<'m> = Cuda<'m, Emulated>;

fn pack(model: PathBuf) -> File {
    pack_as(Options { model, q_config: Some("w8a8".into()), ..Options::default() })
}

fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures").join(name)
}

/// A PixArt whose file is mostly the text encoder, as true ones are: with a vocabulary of which its tokenizer names the first
/// words. Its texts have lengths of their own.
fn heavy() -> File {
    const WORDS: usize = 4000;
    static FOLDERS: AtomicUsize = AtomicUsize::new(0);
    let from = fixture("pixart/sizes");
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let to = std::env::temp_dir().join(format!("aquatint-heavy-{}-{number}", std::process::id()));
    for part in ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
        fs::create_dir_all(to.join(part)).unwrap();
        for file in fs::read_dir(from.join(part)).unwrap() {
            let file = file.unwrap();
            fs::write(to.join(part).join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
        }
    }
    fs::write(to.join("model_index.json"), fs::read(from.join("model_index.json")).unwrap()).unwrap();
    let [config, file] = ["config.json", "model.safetensors"].map(|name| to.join("text_encoder").join(name));
    let mut settings: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["vocab_size"] = WORDS.into();
    fs::write(config, settings.to_string()).unwrap();
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let table = tensors.tensor("shared.weight").unwrap();
    let dims = vec![WORDS, table.shape()[1]];
    let mut rows = table.data().to_vec();
    rows.resize(rows.len() / table.shape()[0] * WORDS, 0);
    let rows = TensorView::new(table.dtype(), dims, &rows).unwrap();
    let others = tensors.tensors().into_iter().filter(|(name, _)| name != "shared.weight");
    let bytes = safetensors::serialize(others.chain([("shared.weight".into(), rows)]), None).unwrap();
    fs::write(file, bytes).unwrap();
    let packed = pack(to.clone());
    fs::remove_dir_all(to).unwrap();
    packed
}

/// The letter model, W4A8: no text encoder.
fn letters() -> File {
    Packed::open(repository("models/glyphs-w4a8.aqt")).unwrap()
}

/// One padded text encoder; two; a heavy one.
fn readers() -> [File; 3] {
    [pack(fixture("sd/v1")), pack(fixture("sd/xl")), heavy()]
}

fn texts(prompt: &str, negative: &str) -> Prompts {
    let (prompts, negatives) = (vec![prompt.into()], vec![Some(negative.into())]);
    Prompts::Texts(Texts { prompts, negatives, style: PromptStyle::Plain })
}

/// A step of a small picture, whose decoder takes less than the networks.
fn request(model: &Model<'_, FileBytes>, prompts: Prompts) -> Request {
    let mut request = Request::new(model, prompts);
    request.steps = 1;
    if model.text.is_some() {
        request.latent_size = [4, 4];
    }
    request
}

/// Texts of unequal lengths.
fn described(model: &Model<'_, FileBytes>) -> Request {
    request(model, texts("a red cat on the sky", "fog"))
}

fn open(file: &File, memory: usize) -> Device<'_> {
    Cuda::new(Emulated::with_memory(1, memory), file.data(), Element::F16)
}

fn bits(output: &Output) -> Vec<u32> {
    output.latents.iter().chain(&output.images).map(|v| v.to_bits()).collect()
}

/// What is announced is what a run takes, to the byte.
#[test]
fn memory_is_what_was_announced() {
    for file in readers().into_iter().chain([letters()]) {
        let model = Model::new(&file).unwrap();
        // What `info` plans: the longest prompts there are.
        let blank = request(&model, Prompts::blank(&model, 1));
        let plans = Plans::new(&CudaSizing { narrow: Element::F16 }, &model, &blank).unwrap();
        let (announced, all) = (plans.peak(), file.data().len() + plans.arena());
        let request = if model.text.is_some() { described(&model) } else { blank };
        let cuda = open(&file, 1 << 32);
        let mut session = Session::new(&model, &cuda);
        let peak = session.plans(&request).unwrap().peak();
        session.keep_at_most(peak);
        session.run(request.clone()).unwrap();
        assert_eq!(cuda.driver().peak(), peak);
        println!("{peak} bytes taken, {announced} announced, {all} with all weights");
        assert!(peak <= announced && announced < all);

        // One byte less is refused before anything runs, with what is needed and what is there.
        let short = open(&file, peak - 1);
        let mut session = Session::new(&model, &short);
        let Err(e) = session.job(request) else { panic!("it fits") };
        assert_eq!(e.kind(), ErrorKind::Memory, "{e}");
        assert!(e.to_string().contains(&format!("expected {peak} bytes free")), "{e}");
        assert!(e.to_string().ends_with(&format!("got {} bytes", peak - 1)), "{e}");
        assert_eq!((session.binds(), short.driver().allocations.get()), (0, 0), "{e}");
    }
}

/// While a denoiser loops, nothing else is there.
#[test]
fn text_encoders_leave_before_the_loop() {
    for (file, largest) in readers().into_iter().zip([Role::Denoiser, Role::Denoiser, Role::TextEncoder]) {
        let model = Model::new(&file).unwrap();
        let mut request = described(&model);
        request.steps = 2;
        let cuda = open(&file, 1 << 32);
        let mut session = Session::new(&model, &cuda);
        let plans = session.plans(&request).unwrap();
        session.keep_at_most(plans.peak());
        let mut seen = Vec::new();
        let device = cuda.driver();
        let mut job = session.job(request).unwrap();
        while let Some(event) = job.next().unwrap() {
            if let Event::Step { .. } = event {
                seen.push((device.in_use(), device.allocations.get(), device.uploaded.get()));
            }
        }
        assert_eq!(plans.largest().role, largest);
        assert!(seen.len() >= 2);
        assert_eq!(seen[0].0, plans.denoisers[0].footprint.total());
        assert!(seen.iter().all(|step| *step == seen[0]), "steps allocate and copy nothing: {seen:?}");
    }
}

/// With memory for all, weights are copied once; with no more than the largest program takes, once per job, however many texts
/// it reads. What is made is the same.
#[test]
fn weights_are_kept_while_there_is_memory() {
    for file in readers() {
        let model = Model::new(&file).unwrap();
        let request = described(&model);
        let roomy = open(&file, 1 << 32);
        let mut session = Session::new(&model, &roomy);
        let first = bits(&session.run(request.clone()).unwrap());
        let once = roomy.driver().uploaded.get();
        assert!(once <= file.data().len());
        assert_eq!(bits(&session.run(request.clone()).unwrap()), first);
        assert_eq!(roomy.driver().uploaded.get(), once);

        let small = open(&file, session.plans(&request).unwrap().peak());
        let mut session = Session::new(&model, &small);
        let mut uploads = [0; 2];
        for uploaded in &mut uploads {
            assert_eq!(bits(&session.run(request.clone()).unwrap()), first);
            *uploaded = small.driver().uploaded.replace(0);
        }
        assert_eq!(uploads[0], once);
        assert!(0 < uploads[1] && uploads[1] <= once, "{uploads:?}, {once} in all");
        assert!(small.driver().peak() < roomy.driver().peak());
    }
}

/// Prompts that are features already need no text encoder, nor memory for one.
#[test]
fn features_need_no_text_encoder() {
    let file = heavy();
    let model = Model::new(&file).unwrap();
    let cuda = open(&file, 1 << 32);
    let mut session = Session::new(&model, &cuda);
    let texts = Texts { prompts: vec!["a red cat".into()], negatives: vec![Some("fog".into())], ..Texts::default() };
    let (features, _): (Embeddings, _) = session.encode(&texts, true).unwrap();
    let (ready, text) = (request(&model, Prompts::Embeddings(features)), request(&model, Prompts::Texts(texts)));
    let [of_ready, of_text] = [&ready, &text].map(|request| session.plans(request).unwrap());
    assert!(of_ready.texts.is_empty() && of_ready.peak() < of_text.peak(), "{} {}", of_ready.peak(), of_text.peak());
    let small = open(&file, of_ready.peak());
    let mut session = Session::new(&model, &small);
    let got = session.run(ready).unwrap();
    let Err(e) = session.job(text.clone()) else { panic!("there is no memory for the text encoder") };
    assert!(e.to_string().starts_with("device memory for the text encoder: expected "), "{e}");
    assert!(e.to_string().contains("encode --device cpu"), "{e}");
    assert_eq!(bits(&got), bits(&Session::new(&model, &cuda).run(text).unwrap()));
}

/// Two programs that read the same tensors make the same of them, together and when one has gone.
#[test]
fn programs_may_share_tensors() {
    let file = letters();
    let denoiser = file.program(Role::Denoiser).unwrap();
    let twin = Program { role: Role::Refiner, ..denoiser.clone() };
    let both = file.with_programs(vec![denoiser.clone(), twin]);
    let cuda = Cuda::new(Emulated::new(1), both.data(), Element::F16);
    let dims = Dims { height: 6, width: 6, ..Dims::ONE };
    let binding = Binding { dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let bind = |role| {
        let mut executor = Executor::new(&cuda, &both, role, binding).unwrap();
        executor.set_class_labels(&[3]).unwrap();
        executor.set_timesteps([500.0].into_iter()).unwrap();
        executor
    };
    let call = |executor: &mut Executor<'_, Device<'_>>| {
        let len = 6 * 6 * file.meta().pipeline.latent_channels as usize;
        executor.write_sample(&(0..len).map(|i| (i % 11) as f32 / 5.0 - 1.0).collect::<Vec<_>>()).unwrap();
        executor.call(0).unwrap();
        let mut out = vec![0.0; executor.plan().output.rows * executor.plan().output.cols];
        executor.read_output(&mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let (mut first, mut second) = (bind(Role::Denoiser), bind(Role::Refiner));
    let want = call(&mut first);
    assert_eq!(call(&mut second), want);
    let taken = first.plan().footprint.total();
    assert_eq!(cuda.driver().in_use(), 2 * taken);
    drop(first);
    assert_eq!(cuda.driver().in_use(), taken);
    assert_eq!(call(&mut second), want);

    // What is bound anew of one program shares its weights.
    let plan = second.plan().clone();
    let weights = plan.ready(&cuda, &both).unwrap();
    drop(second);
    let mut pair = [0, 1].map(|_| Executor::bind(&cuda, &both, plan.clone(), &weights).unwrap());
    drop(weights);
    assert_eq!(cuda.driver().in_use(), taken + plan.footprint.arena);
    for executor in &mut pair {
        executor.set_class_labels(&[3]).unwrap();
        executor.set_timesteps([500.0].into_iter()).unwrap();
        assert_eq!(call(executor), want);
    }
    drop(pair);
    assert_eq!(cuda.driver().in_use(), 0);
}
