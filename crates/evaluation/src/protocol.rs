//! With which images files are compared.

use crate::run::File;
use crate::score::Captions;
use aquatint::model::Classes;
use aquatint::options::{MAX_IMAGES, RequestOptions, SamplingOptions};
use aquatint::raw::text::PromptStyle;
use aquatint::{Error, Prompts, Request, Result, Texts};
use std::ops::Range;

/// Seed of the first image unless another is asked for: far from those that calibration takes, which count from a million.
pub const SEED: u64 = 2_000_000;
/// Files of at most so many bytes have time for many calls, and memory for large batches.
const SMALL: usize = 100_000_000;
/// Most calls whose errors are looked at unless they are asked for, of small files and others.
pub const MOST_CALLS: [usize; 2] = [50, 10];
/// Images per pass through the network unless another number is asked for, of small files and others.
pub const BATCH: [usize; 2] = [26, 4];

/// Which of two defaults is that of `file`.
fn default<D: AsRef<[u8]>>(file: &File<'_, D>, [small, other]: [usize; 2]) -> usize {
    if file.model.packed().as_bytes().len() <= SMALL { small } else { other }
}

/// Calls of the network at which errors are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    /// All, or as many quantiles as [`MOST_CALLS`] has.
    #[default]
    Fitting,
    /// So many, evenly spread over the run, or all of a shorter one.
    AtMost(usize),
    /// So many, evenly spread over the run.
    Quantiles(usize),
    /// These, counted from 0.
    At(Vec<usize>),
}

/// With which images files are compared.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Images whose calls, latents and pixels are compared.
    pub images: usize,
    /// Images that are scored; 0 for none.
    pub scored: usize,
    /// Images per pass through the network; as [`BATCH`] has it if absent.
    pub batch: Option<usize>,
    /// Seed of image 0; image `k` has that of `seed + k` alone.
    pub seed: u64,
    /// Calls whose errors are looked at.
    pub calls: Calls,
    /// Steps, guidance and sampler; what is absent is as the reference was saved.
    pub sampling: SamplingOptions,
    /// What images show, one after the other and again from the first; for models that read text.
    pub captions: Option<Captions>,
    /// Files, by number, whose differences from another one are reported beside those from the reference and the file before.
    pub pairs: Vec<[usize; 2]>,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// Resamples of the Fréchet distance, each of which takes a matrix to its root.
    pub frechet_resamples: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol {
            images: 128,
            scored: 0,
            batch: None,
            seed: SEED,
            calls: Calls::default(),
            sampling: SamplingOptions::default(),
            captions: None,
            pairs: Vec::new(),
            resamples: 1000,
            frechet_resamples: 400,
        }
    }
}

impl Protocol {
    /// Images in all.
    pub(crate) fn total(&self) -> usize {
        self.images.max(self.scored)
    }

    /// Batches of images, none of which has images of different use.
    pub(crate) fn batches<D: AsRef<[u8]>>(&self, reference: &File<'_, D>) -> impl Iterator<Item = Range<usize>> {
        let batch = self.batch.unwrap_or_else(|| default(reference, BATCH));
        let (less, more) = (self.images.min(self.scored), self.total());
        let part = |from: usize, to: usize| (from..to).step_by(batch).map(move |first| first..(first + batch).min(to));
        part(0, less).chain(part(less, more))
    }

    /// Refuses numbers that make no comparison.
    pub(crate) fn check(&self) -> Result<()> {
        let counts = [
            ("n", self.images, 1..=MAX_IMAGES),
            ("score-n", self.scored, 0..=MAX_IMAGES),
            ("batch", self.batch.unwrap_or(1), 1..=MAX_IMAGES),
        ];
        match counts.into_iter().find(|(_, count, range)| !range.contains(count)) {
            Some((name, count, range)) => {
                Err(Error::request(name, format!("{} to {} images", range.start(), range.end()), count))
            }
            None => Ok(()),
        }
    }

    /// What the batch `images` is asked for of `reference`.
    pub(crate) fn request<D: AsRef<[u8]>>(&self, reference: &File<'_, D>, images: Range<usize>) -> Result<Request> {
        let model = reference.model;
        let n = images.len();
        let mut request = RequestOptions { sampling: self.sampling.clone(), ..Default::default() }.blank(model, n)?;
        request.prompts = self.prompts(reference, images.clone())?;
        request.seed = self.seed.wrapping_add(images.start as u64);
        Ok(request)
    }

    /// What the images `images` show.
    fn prompts<D: AsRef<[u8]>>(&self, reference: &File<'_, D>, images: Range<usize>) -> Result<Prompts> {
        let model = reference.model;
        match (&model.text, &model.classes, &self.captions) {
            (Some(_), _, Some(captions)) => {
                let prompts = images.map(|image| captions.of(image).to_owned()).collect();
                Ok(Prompts::Texts(Texts { prompts, negatives: Vec::new(), style: PromptStyle::Plain }))
            }
            (Some(_), _, None) => {
                let expected = format!("a file of captions, since {} reads texts", reference.name);
                Err(Error::request("prompts", expected, "none"))
            }
            (None, _, Some(_)) => {
                let expected = format!("none, since {} reads no texts", reference.name);
                Err(Error::request("prompts", expected, "a file"))
            }
            (None, Some(classes), None) => {
                Ok(Prompts::Classes(images.map(|image| self.class(image, classes)).collect()))
            }
            (None, None, None) => Ok(Prompts::Unconditional(images.len())),
        }
    }

    /// The class of an image: one that has a name after the other or, if there are more than images, evenly spread ones.
    /// Where none has a name, all count.
    pub(crate) fn class(&self, image: usize, classes: &Classes<'_>) -> u32 {
        let named = classes.names.len();
        let count = if named > 0 { named } else { classes.count };
        let place = if self.total() < count { image * count / self.total() } else { image % count };
        classes.names.keys().nth(place).copied().unwrap_or(place as u32)
    }

    /// The chosen calls of a run of `calls`, in order.
    pub(crate) fn chosen<D: AsRef<[u8]>>(&self, reference: &File<'_, D>, calls: usize) -> Result<Vec<usize>> {
        let quantiles = |n: usize| (0..n).map(|i| (2 * i + 1) * calls / (2 * n)).collect();
        match &self.calls {
            Calls::Fitting => Ok(quantiles(calls.min(default(reference, MOST_CALLS)))),
            Calls::AtMost(n @ 1..) => Ok(quantiles(calls.min(*n))),
            Calls::Quantiles(n) if (1..=calls).contains(n) => Ok(quantiles(*n)),
            Calls::AtMost(n) | Calls::Quantiles(n) => {
                Err(Error::request("calls", format!("1 to {calls}, the calls of a run"), n))
            }
            Calls::At(at) => {
                if let Some(bad) = at.iter().find(|&&call| call >= calls) {
                    let expected = format!("calls 0 to {}, since a run makes {calls}", calls - 1);
                    return Err(Error::request("at", expected, bad));
                }
                let mut at = at.clone();
                at.sort_unstable();
                at.dedup();
                if at.is_empty() {
                    return Err(Error::request("at", "at least one call", "none"));
                }
                Ok(at)
            }
        }
    }
}
