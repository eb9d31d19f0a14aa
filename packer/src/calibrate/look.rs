//! Calls made again, with the inputs of layers looked at.

use super::hash::Place;
use super::inputs::{LayerInput, Unit, is_text, text_dims};
use super::run::PENDING;
use super::samples::{self, conditions};
use super::states::Call;
use super::sums::{Accumulator, Slice, flush};
use super::texts::{Chunk, EncoderTexts};
use aquatint::error::Error;
use aquatint::pipeline::{ModelCall, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::exec::{Executor, PromptInputs, Seen};
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{InputKind, Rate};
use aquatint::{Result, pipeline::Prompts};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Images per pass at most where tables are looked at.
const TABLE_BATCH: usize = 64;
/// Bytes of working memory that such a pass is bound to at most; it touches little of them.
const TABLE_BYTES: usize = 1 << 30;

/// Inputs that are looked at together.
pub struct Group {
    /// The inputs, and the name of a layer that reads each.
    pub inputs: Vec<(LayerInput, String)>,
    /// Their sums.
    pub sums: Vec<Accumulator>,
    /// Which input the value that a node reads is.
    by_node: BTreeMap<(u32, usize), usize>,
}

/// What is looked at: images, and the network's call.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The images of the calibration, with features where there were texts.
    pub request: &'a Request,
    /// The class of none.
    pub null: u32,
    /// The numbers of these images.
    pub images: &'a [usize],
    /// Samples of an image.
    pub copies: usize,
    /// The call.
    pub call: Call,
    /// Its number in the run.
    pub index: usize,
}

impl Group {
    /// A group of `inputs` that goes on from `sums`.
    pub fn new(inputs: Vec<(LayerInput, String)>, sums: Vec<Accumulator>) -> Self {
        let by_node = inputs.iter().enumerate().map(|(i, (input, _))| ((input.role as u32, input.node), i)).collect();
        Group { inputs, sums, by_node }
    }

    /// Whether it has inputs of denoisers that are looked at apart from samples.
    pub fn has_tables(&self) -> bool {
        self.inputs.iter().any(|(input, _)| input.rate != Rate::Loop && !is_text(input.role))
    }

    /// Looks at what depends on samples at a call, the `place`-th that is looked at: `samples` are what the network reads,
    /// of all images. Tells `see` after each batch how many images are done; it may end the work by saying false.
    ///
    /// # Errors
    /// Those of the call, and of numbers that are not finite.
    pub fn look(
        &mut self,
        session: &mut Session<'_, Cpu, FileBytes>,
        scene: Scene<'_>,
        place: usize,
        samples: &[f32],
        see: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool> {
        let request = shown(scene.request, scene.images);
        let len = samples.len() / scene.images.len();
        let mut first = 0;
        while first < scene.images.len() {
            let images = batch(&request.prompts, first, request.batch_size);
            first = images.end;
            let call = model_call(scene, images.clone(), &samples[images.start * len..images.end * len]);
            session.observe(&request, &call, |seen| self.see_samples(&seen, scene, place, images.clone()))?;
            flush(&mut self.sums);
            if !see(first) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn see_samples(
        &mut self,
        seen: &Seen<'_, '_, Cpu>,
        scene: Scene<'_>,
        place: usize,
        images: Range<usize>,
    ) -> Result<()> {
        let Some(&index) = self.by_node.get(&(scene.call.role as u32, seen.node)) else { return Ok(()) };
        let (input, _) = &self.inputs[index];
        let Some(operand) = seen.op.operands().next().filter(|_| input.rate == Rate::Loop) else { return Ok(()) };
        let values = seen.values(&operand)?;
        let (prompts, images_of) = (&scene.request.prompts, scene.images);
        let most = images.clone().map(|i| longest(prompts, images_of[i], scene.copies)).max().unwrap_or(1);
        // The row or rows of each sample: its own, or those of its condition.
        let (own, units) = match input.unit {
            Unit::Sample | Unit::Shapes => (None, images.len() * scene.copies),
            Unit::Condition => {
                let list = scene.list(images.clone());
                (Some(list.clone()), list.len())
            }
        };
        let len = values.len() / units;
        let mut slices = Vec::with_capacity(units);
        for (i, image) in images.clone().enumerate() {
            for branch in 0..scene.copies {
                let unit = match &own {
                    None => branch * images.len() + i,
                    Some(list) => list.iter().position(|key| *key == scene.key(image, branch)).unwrap_or(0),
                };
                let place = Place { image: scene.images[image], call: scene.index, branch };
                let counting = counting(input, prompts, (images_of[image], branch), len, most);
                slices.push(Slice { values: &values[unit * len..][..counting], place, weight: 1.0 });
            }
        }
        self.push(index, place, &slices, scene.index)
    }

    /// Looks at what depends on prompts and timesteps alone: each distinct condition once, with the weight of the images
    /// that have it in `counts`. What depends on prompts alone is looked at if `once_per_prompt`.
    ///
    /// # Errors
    /// As those of [`look`](Self::look).
    pub fn look_at_tables(
        &mut self,
        session: &mut Session<'_, Cpu, FileBytes>,
        scene: Scene<'_>,
        counts: &BTreeMap<usize, f32>,
        once_per_prompt: bool,
    ) -> Result<()> {
        let mut known = BTreeSet::new();
        let new =
            |image: &usize| (0..scene.copies).filter(|&branch| known.insert(key(scene, *image, branch))).count() > 0;
        let images: Vec<usize> = scene.images.iter().copied().filter(new).collect();
        let scene = Scene { images: &images, ..scene };
        let request = wide(session, shown(scene.request, &images));
        let latents = request.latents_len(session.model());
        let (mut first, mut done) = (0, BTreeSet::new());
        while first < images.len() {
            let batch = batch(&request.prompts, first, request.batch_size);
            first = batch.end;
            let fresh: Vec<Sample> = batch
                .clone()
                .flat_map(|i| (0..scene.copies).map(move |b| (i, b)))
                .map(|(i, branch)| Sample { image: images[i], branch, key: scene.key(i, branch) })
                .filter(|sample| done.insert(sample.key))
                .collect();
            let prompts = &scene.request.prompts;
            let most = batch.clone().map(|i| longest(prompts, images[i], scene.copies)).max().unwrap_or(1);
            let (list, once) = (scene.list(batch.clone()), once_per_prompt && batch.start == 0);
            let call = model_call(scene, batch.clone(), &vec![0.0; batch.len() * latents]);
            let mut ended = false;
            let result = session.observe(&request, &call, |seen| {
                if seen.rate == Rate::Loop {
                    // Nothing more to see; an error is what ends a call.
                    ended = true;
                    return Err(Error::request("call", "its tables", "its loop"));
                }
                self.see_tables(&seen, scene, (&list, &fresh, most), counts, [once_per_prompt, once])
            });
            if !ended {
                result?;
            }
            flush(&mut self.sums);
        }
        Ok(())
    }

    /// Looks at what text encoders make of their texts, `batch` chunks of one length at a time.
    ///
    /// # Errors
    /// As those of [`look`](Self::look).
    pub fn look_at_texts(
        &mut self,
        cpu: &Cpu,
        packed: &Packed<FileBytes>,
        encoder: &EncoderTexts,
        batch: usize,
    ) -> Result<()> {
        if !self.inputs.iter().any(|(input, _)| input.role == encoder.role) {
            return Ok(());
        }
        let chunks: Vec<Chunk<'_>> = encoder.chunks().filter(|chunk| chunk.weight > 0.0).collect();
        for chunks in chunks.chunk_by(|a, b| a.ids.len() == b.ids.len()) {
            self.look_at_chunks(cpu, packed, encoder, chunks, batch.min(chunks.len()))?;
        }
        Ok(())
    }

    /// The same of `chunks` that are all as long.
    fn look_at_chunks(
        &mut self,
        cpu: &Cpu,
        packed: &Packed<FileBytes>,
        encoder: &EncoderTexts,
        chunks: &[Chunk<'_>],
        batch: usize,
    ) -> Result<()> {
        let dims = text_dims(batch, chunks.first().map_or(1, |chunk| chunk.ids.len()));
        let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::new(cpu, packed, encoder.role, binding)?;
        for chunks in chunks.chunks(batch) {
            // A batch is filled up with its last chunk, which nobody looks at then.
            let padding = std::iter::repeat_n(chunks.last(), batch - chunks.len()).flatten();
            let all = || chunks.iter().chain(padding.clone());
            let ids: Vec<u32> = all().flat_map(|chunk| chunk.ids).copied().collect();
            executor.set_tokens(&ids)?;
            if executor.program().input(InputKind::Lengths).is_some() {
                let lengths: Vec<u32> = all().map(|chunk| chunk.seen as u32).collect();
                executor.set_prompt(&PromptInputs { lengths: Some(&lengths), ..Default::default() })?;
            }
            executor.observe(0, |seen| {
                let Some(&index) = self.by_node.get(&(encoder.role as u32, seen.node)) else { return Ok(()) };
                let Some(operand) = seen.op.operands().next() else { return Ok(()) };
                let values = seen.values(&operand)?;
                let rows = values.chunks_exact(values.len() / batch).zip(chunks);
                let channels = self.inputs[index].0.rows.channels();
                let slices: Vec<_> = rows.map(|(values, chunk)| of_chunk(values, channels, chunk)).collect();
                self.push(index, 0, &slices, 0)
            })?;
            flush(&mut self.sums);
        }
        Ok(())
    }

    fn see_tables(
        &mut self,
        seen: &Seen<'_, '_, Cpu>,
        scene: Scene<'_>,
        (list, fresh, most): (&[usize], &[Sample], usize),
        counts: &BTreeMap<usize, f32>,
        [once_per_prompt, once]: [bool; 2],
    ) -> Result<()> {
        let Some(&index) = self.by_node.get(&(scene.call.role as u32, seen.node)) else { return Ok(()) };
        let (input, _) = &self.inputs[index];
        let wanted = match (input.rate, input.unit) {
            (Rate::Loop, _) => false,
            (_, Unit::Shapes) => once,
            (Rate::Step, _) => true,
            (Rate::Bind | Rate::Prompt, _) => once_per_prompt,
        };
        let Some(operand) = seen.op.operands().next().filter(|_| wanted) else { return Ok(()) };
        let values = seen.values(&operand)?;
        let call = if input.rate == Rate::Step { scene.index } else { 0 };
        let mut slices = Vec::new();
        if input.unit == Unit::Shapes {
            let place = Place { image: 0, call, branch: 0 };
            slices.push(Slice { values: &values, place, weight: 1.0 });
        } else {
            let len = values.len() / list.len();
            for &Sample { image, branch, key } in fresh {
                let row = list.iter().position(|other| *other == key).unwrap_or(0);
                let (place, weight) = (Place { image: key, call, branch: 0 }, counts.get(&key).copied().unwrap_or(1.0));
                let counting = counting(input, &scene.request.prompts, (image, branch), len, most);
                slices.push(Slice { values: &values[row * len..][..counting], place, weight });
            }
        }
        self.push(index, call, &slices, scene.index)
    }

    fn push(&mut self, index: usize, place: usize, slices: &[Slice<'_>], call: usize) -> Result<()> {
        self.sums[index].push(place, slices).map_err(|fault| {
            let what = format!("input of {} at call {call}", self.inputs[index].1);
            Error::request(what, "finite numbers", fault)
        })?;
        if self.sums.iter().map(Accumulator::pending_bytes).sum::<usize>() > PENDING {
            flush(&mut self.sums);
        }
        Ok(())
    }
}

/// What is looked at of the `values` of a chunk, rows of `channels`.
fn of_chunk<'a>(values: &'a [f32], channels: usize, chunk: &Chunk<'_>) -> Slice<'a> {
    let place = Place { image: chunk.text, call: 0, branch: 0 };
    let rows = values.len() / channels;
    let counting = if rows == chunk.ids.len() { chunk.length } else { rows };
    Slice { values: &values[..counting * channels], place, weight: chunk.weight }
}

/// A sample of an image, and its condition.
#[derive(Clone, Copy)]
struct Sample {
    image: usize,
    branch: usize,
    key: usize,
}

/// How many of the `len` values are looked at that `input` has of a sample, in a call whose longest prompt has `most` tokens: those
/// of tokens that the sample's own prompt has, as others only fill up the batch.
fn counting(input: &LayerInput, prompts: &Prompts, (image, branch): (usize, usize), len: usize, most: usize) -> usize {
    if input.by_token { len / most * own_tokens(prompts, image, branch) } else { len }
}

/// Tokens of what an image shows, or of what guidance leads it away from.
fn own_tokens(prompts: &Prompts, image: usize, branch: usize) -> usize {
    match prompts {
        Prompts::Embeddings(embeddings) => embeddings.prompts[embeddings.of_image[image][branch]].tokens(),
        Prompts::Unconditional(_) | Prompts::Classes(_) | Prompts::Texts(_) => 1,
    }
}

/// Tokens of the longer of both.
fn longest(prompts: &Prompts, image: usize, copies: usize) -> usize {
    (0..copies).map(|branch| own_tokens(prompts, image, branch)).max().unwrap_or(1)
}

impl Scene<'_> {
    /// The condition of sample `branch` of the `i`-th of the images.
    fn key(&self, i: usize, branch: usize) -> usize {
        key(*self, self.images[i], branch)
    }

    /// The distinct conditions of a batch, in the order in which a network has them: those of what images show come first.
    fn list(&self, images: Range<usize>) -> Vec<usize> {
        let mut list = Vec::new();
        for branch in 0..self.copies {
            for i in images.clone() {
                let key = self.key(i, branch);
                if !list.contains(&key) {
                    list.push(key);
                }
            }
        }
        list
    }
}

/// The condition of sample `branch` of an image by its number.
fn key(scene: Scene<'_>, image: usize, branch: usize) -> usize {
    conditions(&scene.request.prompts, image, scene.null)[branch]
}

/// The request for `images` alone.
fn shown(request: &Request, images: &[usize]) -> Request {
    samples::with(request, request.prompts.of_images(images))
}

/// `request` with as many images per pass as there is memory for: of a pass only the rows of tables are worked out, and there
/// are few of them for each weight that is read.
fn wide(session: &Session<'_, Cpu, FileBytes>, request: Request) -> Request {
    let mut asked = request.clone();
    (asked.batch_size, asked.max_memory) = (TABLE_BATCH, Some(TABLE_BYTES));
    let batch_size = session.plans(&asked).map_or(request.batch_size, |plans| plans.batch_size.max(request.batch_size));
    let mut request = request;
    request.batch_size = batch_size;
    request
}

/// At most `most` images from image `first` whose prompts have as many tokens.
fn batch(prompts: &Prompts, first: usize, most: usize) -> Range<usize> {
    let end = (first + most).min(prompts.len());
    first..(first + 1..end).find(|&i| prompts.tokens(i) != prompts.tokens(first)).unwrap_or(end)
}

fn model_call(scene: Scene<'_>, images: Range<usize>, sample: &[f32]) -> ModelCall {
    let Call { role, moment } = scene.call;
    ModelCall { role, index: scene.index, moment, images, sample: sample.to_vec() }
}
