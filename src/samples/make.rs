//! A shard, batch after batch.

use super::file::{Header, SampleFile, Shapes, Tensor, Writer, text_of};
use super::job::{SampleJob, difference};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::image::from_nhwc;
use crate::pipeline::{self, Prompts, Session, swap_last_axes};
use crate::shard::Shard;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// Prompts that are encoded once for a shard; of more, features would take more memory than encoding takes time.
const ENCODED_AT_ONCE: usize = 16;
/// How names of shards begin and end.
const NAME: [&str; 2] = ["shard-", ".safetensors"];

/// What happens while a shard is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// So many images were there from an earlier process, which did not end.
    Resumed(usize),
    /// This part of a prompt is beyond what the text encoder reads and was cut off.
    Cut(&'a str),
    /// So many images of the shard are done, of so many.
    Done(usize, usize),
}

/// What became of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeShard {
    /// Its file.
    pub path: PathBuf,
    /// Its images.
    pub images: Range<usize>,
    /// Whether it had been done before.
    pub already: bool,
}

/// The name of a shard's file.
pub(super) fn name(shard: Shard) -> String {
    let [begin, end] = NAME;
    format!("{begin}{:05}-of-{:05}{end}", shard.index, shard.of)
}

/// The shard whose file has this name.
fn shard_of(file: &str) -> Option<Shard> {
    let (index, of) = file.strip_prefix(NAME[0])?.strip_suffix(NAME[1])?.split_once("-of-")?;
    let shard = Shard { index: index.parse().ok()?, of: of.parse().ok()? };
    (name(shard) == file).then_some(shard)
}

/// The shards whose files are in `folder`, in order.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub(super) fn shards_in(folder: &Path) -> Result<Vec<Shard>> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut found: Vec<Shard> = entries.flatten().filter_map(|entry| shard_of(entry.file_name().to_str()?)).collect();
    found.sort_by_key(|shard| (shard.of, shard.index));
    Ok(found)
}

/// Makes a shard of `job`, of the model of `session`, in `folder`, which is made if it is not there; `see` is told what
/// happens. A shard that is there is left as it is, and one that was begun is gone on with.
///
/// # Errors
/// [`Error::Request`] if the folder holds shards of another job, or so many shards are not what is there; those of
/// [`pipeline::Job::next`] and of writing files.
pub fn make<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    job: &SampleJob,
    shard: Shard,
    folder: &Path,
    see: &mut dyn FnMut(Event<'_>),
) -> Result<MadeShard> {
    fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    // All shards of a folder are of one job, which its first file tells.
    if let Some(&first) = shards_in(folder)?.first() {
        if first.of != shard.of {
            let expected = format!("{}, as there are in {}, or another folder", first.of, folder.display());
            return Err(Error::request("number of shards", expected, shard.of));
        }
        check_job(job, &SampleFile::open(&folder.join(name(first)))?)?;
    }
    let path = folder.join(name(shard));
    let images = shard.range(job.images());
    if path.exists() {
        return done(job, shard, path);
    }
    let work = Work { job, shard, images: images.clone(), device: session.backend().name(), path: path.clone() };
    match work.run(session, see) {
        Ok(()) => Ok(MadeShard { path, images, already: false }),
        // Another process may have finished the shard meanwhile, and have tidied up.
        Err(_) if path.exists() => done(job, shard, path),
        Err(e) => Err(e),
    }
}

/// The shard that is at `path`, if it is sound and of `job`.
fn done(job: &SampleJob, shard: Shard, path: PathBuf) -> Result<MadeShard> {
    let (file, images) = (SampleFile::open(&path)?, shard.range(job.images()));
    check_job(job, &file)?;
    if (file.header().shard(), file.range()) != (shard, images.clone()) {
        let (expected, got) = (format!("shard {shard}"), format!("shard {}", file.header().shard()));
        return Err(Error::request(path.display().to_string(), expected, got));
    }
    file.verify()?;
    // Left behind by a process that was killed at its end; of no use to anybody, and no harm if it cannot be removed.
    let _ = fs::remove_dir_all(partial(&path));
    Ok(MadeShard { path, images, already: true })
}

/// The folder of what is done of the unfinished shard at `path`.
fn partial(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

/// Refuses a file of another job.
fn check_job(job: &SampleJob, file: &SampleFile) -> Result<()> {
    match difference(&job.settings, &file.header().job) {
        None => Ok(()),
        Some((setting, [ours, theirs])) => {
            let expected = format!("{theirs}, as {} has, or another folder for another job", file.path().display());
            Err(Error::request(setting, expected, ours))
        }
    }
}

/// A shard at work.
struct Work<'a> {
    job: &'a SampleJob,
    shard: Shard,
    images: Range<usize>,
    device: String,
    path: PathBuf,
}

impl Work<'_> {
    fn run<B: Backend, D: AsRef<[u8]>>(
        &self,
        session: &mut Session<'_, B, D>,
        see: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let partial = partial(&self.path);
        fs::create_dir_all(&partial).map_err(Error::io("make", &partial))?;
        let mut encoded: Option<SampleJob> = None;
        let (mut parts, mut at, mut resumed) = (Vec::new(), self.images.start, 0);
        while at < self.images.end {
            let part = partial.join(format!("{at:012}.safetensors"));
            if let Some(end) = self.kept(&part)? {
                resumed += end - at;
                at = end;
            } else {
                if resumed > 0 {
                    see(Event::Resumed(std::mem::take(&mut resumed)));
                }
                let job = match &encoded {
                    Some(job) => job,
                    None => encoded.insert(self.encoded(session, see)?),
                };
                let end = self.images.end.min(at + self.job.batch());
                self.make(session, job, at..end, &part, see)?;
                at = end;
            }
            parts.push(part);
            see(Event::Done(at - self.images.start, self.images.len()));
        }
        let header = self.job.header(self.shard, self.images.clone(), &self.device);
        join(&self.path, &header, self.job.shapes(), &parts)?;
        fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))
    }

    /// The end of the images in the part at `path`, if there is one that this process would make.
    fn kept(&self, path: &Path) -> Result<Option<usize>> {
        if !path.exists() {
            return Ok(None);
        }
        let file = SampleFile::open(path)?;
        check_job(self.job, &file)?;
        file.verify()?;
        let (header, end) = (file.header(), file.range().end);
        // Images of one shard are of one kind of processor.
        let own = header.device == self.device && header.shard() == self.shard && end <= self.images.end;
        Ok((own && !file.range().is_empty()).then_some(end))
    }

    /// The job with features in place of texts, if there are few.
    fn encoded<B: Backend, D: AsRef<[u8]>>(
        &self,
        session: &mut Session<'_, B, D>,
        see: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampleJob> {
        match self.job.prompts() {
            Prompts::Texts(texts) if texts.prompts.len() <= ENCODED_AT_ONCE => {
                let (features, cut) = session.encode(texts, self.job.guided())?;
                cut.iter().for_each(|cut| see(Event::Cut(cut)));
                Ok(self.job.with_prompts(Prompts::Embeddings(features)))
            }
            _ => Ok(self.job.clone()),
        }
    }

    /// Makes `images` and keeps them at `path`.
    fn make<B: Backend, D: AsRef<[u8]>>(
        &self,
        session: &mut Session<'_, B, D>,
        job: &SampleJob,
        images: Range<usize>,
        path: &Path,
        see: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let (model, n) = (session.model(), images.len());
        let asked = self.job.request(images.clone());
        let texts = (0..n).map(|k| Ok(text_of(&self.job.text(model, &asked, k, &self.device).to_string())? + "\n"));
        let texts = texts.collect::<Result<String>>()?;
        let request = job.request(images.clone());
        let plans = session.plans(&request)?;
        // What one batch needs stays bound for the next, and no more: prompts of other lengths need other programs.
        session.keep_at_most(plans.total().min(job.max_memory().unwrap_or(usize::MAX)).max(plans.peak()));
        let made = session.job(request)?;
        made.cut().iter().for_each(|cut| see(Event::Cut(cut)));
        let (latents, pictures) = match job.kept().images() {
            true => {
                let output = made.finish()?;
                let bytes = bytes_of(&output, images.start)?;
                (output.latents, bytes)
            }
            false => {
                let latents = made.denoise(|_, _| ())?;
                let channels = model.latents.channels;
                (swap_last_axes(&latents, [n, latents.len() / (n * channels), channels]), Vec::new())
            }
        };
        let header = self.job.header(self.shard, images, &self.device);
        let shapes = Shapes { texts: texts.len(), ..self.job.shapes().clone() };
        let mut writer = Writer::create(path, &header, &shapes)?;
        if job.kept().latents() {
            writer.put(latents.as_bytes())?;
        }
        writer.put(&pictures)?;
        writer.put(texts.as_bytes())?;
        writer.commit()
    }
}

/// The pictures as bytes, of which `first` is the number of the first image.
fn bytes_of(output: &pipeline::Output, first: usize) -> Result<Vec<u8>> {
    let [h, w] = output.size;
    let len = output.frames * h * w * output.channels;
    let mut bytes = Vec::with_capacity(output.images.len());
    for (k, values) in output.images.chunks_exact(len).enumerate() {
        let frames = from_nhwc(values, output.frames, h as u32, w as u32, output.channels);
        let frames = frames.map_err(|e| match e {
            Error::Request { kind, expected, got, .. } => {
                Error::Request { kind, what: format!("image {}", first + k), expected, got }
            }
            other => other,
        })?;
        frames.iter().for_each(|frame| bytes.extend_from_slice(frame.bytes()));
    }
    Ok(bytes)
}

/// Writes the images of `parts`, which follow each other, into one file.
pub(super) fn join(path: &Path, header: &Header, shapes: &Shapes, parts: &[PathBuf]) -> Result<()> {
    let mut texts = 0;
    for part in parts {
        texts += SampleFile::open(part)?.bytes(Tensor::Texts).len();
    }
    let mut writer = Writer::create(path, header, &Shapes { texts, ..shapes.clone() })?;
    for tensor in Tensor::ALL {
        // One map at a time: a job may have thousands of shards.
        for part in parts {
            writer.put(SampleFile::open(part)?.bytes(tensor))?;
        }
    }
    writer.commit()
}
