//! What images show: classes, prompts, or whatever the model makes.

use super::texts::Texts;
use crate::error::Result;
use crate::model::{Model, TextEncoder, TextModel};

/// What each image of a request shows; its length is the number of images.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompts {
    /// Whatever the model makes: so many images.
    Unconditional(usize),
    /// A class per image.
    Classes(Vec<u32>),
    /// Texts, which the job encodes.
    Texts(Texts),
    /// Features of texts.
    Embeddings(Embeddings),
}

/// Features of prompts.
///
/// Images may have prompts of different lengths. Those of one call, and so the two of an image with guidance, have as many
/// tokens, unless the denoiser is told how long each is.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// Distinct prompts.
    pub prompts: Vec<PromptFeatures>,
    /// Per image: index of its prompt and of its negative prompt.
    pub of_image: Vec<[usize; 2]>,
}

/// A prompt as all text encoders tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptFeatures {
    /// One entry per text encoder, in the model's order.
    pub encoders: Vec<EncoderFeatures>,
}

/// A prompt as one text encoder tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncoderFeatures {
    /// Tokens: rows of the features.
    pub tokens: usize,
    /// How many of them count, the first ones.
    pub length: usize,
    /// `(tokens, features)`; empty while a prompt is planned with and not encoded yet.
    pub features: Vec<f32>,
    /// The vector of the whole text; empty if the encoder has none.
    pub pooled: Vec<f32>,
}

impl PromptFeatures {
    /// Tokens that the first text encoder tells of.
    pub fn tokens(&self) -> usize {
        self.encoders.first().map_or(1, |encoder| encoder.tokens)
    }
}

impl EncoderFeatures {
    /// The first `tokens` of them, if there are more.
    pub(super) fn first(mut self, tokens: usize) -> Self {
        let width = self.features.len() / self.tokens.max(1);
        let tokens = tokens.min(self.tokens);
        self.features.truncate(tokens * width);
        EncoderFeatures { tokens, length: self.length.min(tokens), ..self }
    }

    /// What is planned with: `tokens` rows, of which `length` count.
    pub(super) fn outline(tokens: usize, length: usize) -> Self {
        EncoderFeatures { tokens, length, ..Default::default() }
    }
}

impl Prompts {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Prompts::Unconditional(n) => *n,
            Prompts::Classes(labels) => labels.len(),
            Prompts::Texts(texts) => texts.prompts.len(),
            Prompts::Embeddings(embeddings) => embeddings.of_image.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the prompt of image `i`; 1 where there are none.
    pub fn tokens(&self, i: usize) -> usize {
        match self {
            Prompts::Embeddings(embeddings) => embeddings.prompts[embeddings.of_image[i][0]].tokens(),
            _ => 1,
        }
    }

    /// The class of each image; empty if images have none.
    pub fn classes(&self) -> &[u32] {
        if let Prompts::Classes(labels) = self { labels } else { &[] }
    }

    /// Prompts of `n` images that differ, without content: for memory plans and timings.
    pub fn blank<D: AsRef<[u8]>>(model: &Model<'_, D>, n: usize) -> Self {
        if let Some(text) = &model.text {
            return Prompts::Embeddings(Embeddings::blank(text, n));
        }
        match &model.classes {
            Some(classes) => Prompts::Classes((0..n).map(|i| (i % classes.count) as u32).collect()),
            None => Prompts::Unconditional(n),
        }
    }

    /// Those of the images `images`, which may be there more than once.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn of_images(&self, images: &[usize]) -> Self {
        match self {
            Prompts::Unconditional(_) => Prompts::Unconditional(images.len()),
            Prompts::Classes(labels) => Prompts::Classes(images.iter().map(|&i| labels[i]).collect()),
            Prompts::Texts(texts) => {
                let negatives = match texts.negatives.len() {
                    0 | 1 => texts.negatives.clone(),
                    _ => images.iter().map(|&i| texts.negatives[i].clone()).collect(),
                };
                let prompts = images.iter().map(|&i| texts.prompts[i].clone()).collect();
                Prompts::Texts(Texts { prompts, negatives, style: texts.style })
            }
            Prompts::Embeddings(Embeddings { prompts, of_image }) => {
                let of_image = images.iter().map(|&i| of_image[i]).collect();
                Prompts::Embeddings(Embeddings { prompts: prompts.clone(), of_image })
            }
        }
    }

    /// What image `i` shows and what guidance leads away from, for people.
    pub fn describe<D: AsRef<[u8]>>(&self, i: usize, model: &Model<'_, D>) -> [String; 2] {
        match (self, &model.classes) {
            (Prompts::Classes(labels), Some(classes)) => [classes.name(labels[i]), String::new()],
            (Prompts::Texts(texts), _) => [texts.prompts[i].clone(), texts.negative(i).unwrap_or_default().to_owned()],
            _ => Default::default(),
        }
    }

    /// The same for `n` images, if it is for one.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) if it is for another number of images; `what` has `n` of them.
    pub fn repeat(&mut self, n: usize, what: &str) -> Result<()> {
        if self.len() == 1 {
            match self {
                Prompts::Unconditional(count) => *count = n,
                Prompts::Classes(labels) => *labels = vec![labels[0]; n],
                Prompts::Texts(texts) => texts.prompts = vec![texts.prompts[0].clone(); n],
                Prompts::Embeddings(embeddings) => embeddings.of_image = vec![embeddings.of_image[0]; n],
            }
        }
        if self.len() != n {
            let expected = format!("{} images, one per prompt or class", self.len());
            return Err(crate::Error::request(what, expected, n));
        }
        Ok(())
    }
}

impl Embeddings {
    /// Embeddings of `n` prompts that differ in nothing but their number, each as long as one text can be.
    fn blank(text: &TextModel, n: usize) -> Self {
        let encoder = |e: &TextEncoder| EncoderFeatures {
            features: vec![0.0; e.tokens * e.features],
            pooled: vec![0.0; e.pooled],
            ..EncoderFeatures::outline(e.tokens, e.tokens)
        };
        let prompt = PromptFeatures { encoders: text.encoders.iter().map(encoder).collect() };
        Embeddings { prompts: vec![prompt; n], of_image: (0..n).map(|i| [i, 0]).collect() }
    }
}
