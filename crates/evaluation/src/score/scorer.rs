//! Who reads pictures, with what is to be read in them.

use super::{Attributes, Captions, Classifier, LETTERS, Reference, STYLES, read_colours};
use crate::folders::Folder;
use crate::network::{Clip, Inception, Lpips, clip_score};
use crate::protocol::Protocol;
use crate::stats::FEWEST;
use aquatint::{Error, Model, Result};
use std::path::Path;

/// Who reads pictures: any of these.
#[derive(Default)]
pub struct Scorer {
    /// Tells whether a picture shows what was asked for; its features are compared where there is no Inception.
    pub classifier: Option<Classifier>,
    /// Makes features, and probabilities of classes.
    pub inception: Option<Inception>,
    /// Compares two pictures.
    pub lpips: Option<Lpips>,
    /// Compares pictures with captions.
    pub clip: Option<Texts>,
    /// The features of true pictures.
    pub reference: Option<Reference>,
}

/// CLIP, and the directions of captions.
pub struct Texts {
    clip: Clip,
    /// Of each caption.
    directions: Vec<Vec<f32>>,
}

/// What is asked for of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A class by its label.
    Class(u32),
    /// What a caption names.
    Caption(Attributes),
}

/// What was read in a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// Per criterion, whether it is what was asked for.
    pub right: Vec<bool>,
    /// The features that are compared with true ones.
    pub features: Vec<f32>,
    /// Outputs of who made them.
    pub logits: Vec<f32>,
    /// How well it fits its caption, 0 to 100.
    pub clip: Option<f64>,
}

impl Texts {
    /// CLIP for `captions`, the tokens of which `tokens` knows.
    ///
    /// # Errors
    /// Those of `tokens`, and of [`Clip::text`].
    pub fn new(clip: Clip, captions: &Captions, tokens: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Self> {
        let direction = |image: usize| clip.text(&tokens(captions.of(image))?);
        let directions = (0..captions.count()).map(direction).collect::<Result<_>>()?;
        Ok(Texts { clip, directions })
    }

    /// How well a picture fits the caption of image number `image`.
    fn score(&self, image: usize, picture: &[f32], size: [usize; 2]) -> f64 {
        clip_score(&self.clip.picture(picture, size), &self.directions[image % self.directions.len()])
    }
}

impl Scorer {
    /// Reads a classifier (`conv1`, `conv2`.. of 3x3 and stride 2, `fc1`, `fc2`), and of `features`, if given, what is known of its
    /// features of true pictures.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Request`] if it has not these tensors in shapes that go together.
    pub fn open(classifier: &Path, features: Option<&Path>) -> Result<Self> {
        let bytes = std::fs::read(classifier).map_err(Error::io("read", classifier))?;
        let classifier = Classifier::new(&classifier.display().to_string(), &bytes)?;
        let scorer = Scorer { classifier: Some(classifier), ..Scorer::default() };
        match features {
            Some(path) => scorer.with_reference(path),
            None => Ok(scorer),
        }
    }

    /// The same with the features of true pictures: those that a file tells of, or of the pictures in a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; those of [`Reference::new`]; [`Error::Request`] if nobody makes features, or a folder has
    /// fewer than two pictures or others than can be read.
    pub fn with_reference(self, path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let Some(features) = self.features() else {
            return Err(Error::request("reference-features", "a network that makes features", "none"));
        };
        if path.is_dir() {
            let made = Folder::new(path)?.features(&self)?;
            return Ok(Scorer { reference: Some(Reference::of_features(&name, made, features)), ..self });
        }
        let bytes = aquatint::raw::mmap::open(path)?;
        Ok(Scorer { reference: Some(Reference::new(&name, &bytes, features)?), ..self })
    }

    /// Numbers of a picture that are compared with those of true ones, if there are any.
    pub fn features(&self) -> Option<usize> {
        let inception = self.inception.as_ref().map(Inception::features);
        inception.or(self.classifier.as_ref().map(Classifier::features))
    }

    /// Whether there is anyone who reads single pictures.
    pub fn reads(&self) -> bool {
        self.features().is_some() || self.clip.is_some()
    }

    /// What the networks are called whose figures compare with those of the same networks alone.
    pub(crate) fn networks(&self) -> Vec<String> {
        let inception =
            self.inception.as_ref().map(|inception| format!("Inception of 2015-12-05, {}", inception.resize()));
        let lpips = self.lpips.as_ref().map(|lpips| format!("LPIPS 0.1, {}", lpips.name()));
        let clip = self.clip.as_ref().map(|texts| format!("CLIP, {}", texts.clip.name()));
        [inception, lpips, clip].into_iter().flatten().collect()
    }

    /// Classes whose probabilities make an Inception score.
    pub(crate) fn inception_classes(&self) -> Option<usize> {
        self.inception.as_ref().map(Inception::classes)
    }

    /// What people should know of distances of so many pictures' features.
    pub(crate) fn notes(&self, pictures: usize) -> Vec<String> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let several = (pictures < FEWEST && (reference.kernel().is_some() || self.inception.is_some()))
            .then(|| format!("{pictures} images: of {FEWEST} or more there would be KID and Inception score"));
        let d = reference.gaussian().features();
        let few = (pictures <= d).then(|| {
            format!(
                "{pictures} images have a singular covariance of {d} features: their Fréchet distance is too large, and comparable \
                 with those of as many images only; {} or more are usual",
                5 * d
            )
        });
        reference.note().map(str::to_owned).into_iter().chain(few).chain(several).collect()
    }

    /// Refuses pictures of a model that cannot be read, and captions that do not say what there is to see.
    pub(crate) fn check<D: AsRef<[u8]>>(
        &self,
        size: [usize; 2],
        model: &Model<'_, D>,
        protocol: &Protocol,
    ) -> Result<()> {
        self.check_pictures(size, model.picture_channels())?;
        if protocol.scored == 0 {
            return Ok(());
        }
        if self.reference.is_some() && protocol.scored < 2 {
            let expected = "at least 2 images for the spread of their features";
            return Err(Error::request("score-n", expected, protocol.scored));
        }
        if let Some(classifier) = &self.classifier {
            check_asked(classifier.outputs(), model, protocol)?;
        }
        Ok(())
    }

    /// Refuses pictures that the networks cannot read.
    pub(crate) fn check_pictures(&self, size: [usize; 2], channels: usize) -> Result<()> {
        if let Some(classifier) = &self.classifier {
            classifier.check(size, channels)?;
        }
        if let Some(lpips) = &self.lpips {
            lpips.check(size, channels)?;
        }
        if let Some(texts) = &self.clip {
            texts.clip.check(size)?;
        }
        match (self.inception.is_some() || self.clip.is_some()) && channels != 3 {
            true => Err(Error::request("pictures", "3 channels, for Inception and CLIP", channels)),
            false => Ok(()),
        }
    }

    /// The features of a picture `(height, width, 3)` in 0..1, by whom they are compared.
    pub(crate) fn extract(&self, picture: &[f32], size: [usize; 2]) -> Result<Vec<f32>> {
        match (&self.inception, &self.classifier) {
            (Some(inception), _) => Ok(inception.read(picture, size).0),
            (None, Some(classifier)) => {
                classifier.check(size, 3)?;
                Ok(classifier.read(picture, size).0)
            }
            (None, None) => Ok(Vec::new()),
        }
    }

    /// What is asked for of an image, where there is a classifier to read it.
    pub(crate) fn asked<D>(&self, image: usize, model: &Model<'_, D>, protocol: &Protocol) -> Option<Asked> {
        self.classifier.as_ref().map(|_| match (&protocol.captions, &model.classes) {
            (Some(captions), _) => Asked::Caption(captions.asked(image)),
            (None, Some(classes)) => Asked::Class(protocol.class(image, classes)),
            (None, None) => unreachable!("checked before images are scored"),
        })
    }

    /// Names of what is read in pictures, in the order of marks.
    pub(crate) fn criteria(&self, protocol: &Protocol) -> Vec<&'static str> {
        match (&self.classifier, &protocol.captions) {
            (None, _) => Vec::new(),
            (Some(_), None) => vec!["class"],
            (Some(c), Some(_)) if c.outputs() == LETTERS => vec!["letter", "ink", "background", "all"],
            (Some(_), Some(_)) => vec!["letter", "ink", "background", "all", "style"],
        }
    }

    /// Reads the picture `(height, width, channels)` in 0..1 of image number `image`.
    ///
    /// # Errors
    /// [`Error::Request`] if a value is not finite: features of it would spoil those of all.
    pub(crate) fn mark(&self, image: usize, picture: &[f32], size: [usize; 2], asked: Option<Asked>) -> Result<Mark> {
        if let Some(bad) = picture.iter().find(|v| !v.is_finite()) {
            return Err(Error::request(format!("image {image}"), "a picture of finite values", bad));
        }
        let mut mark = Mark::default();
        if let Some(classifier) = &self.classifier {
            (mark.features, mark.logits) = classifier.read(picture, size);
            mark.right = asked.map(|asked| right(&mark.logits, asked, picture, size)).unwrap_or_default();
        }
        if let Some(inception) = &self.inception {
            (mark.features, mark.logits) = inception.read(picture, size);
        }
        mark.clip = self.clip.as_ref().map(|texts| texts.score(image, picture, size));
        Ok(mark)
    }
}

/// Refuses captions and classes that a classifier of so many `outputs` does not know.
fn check_asked<D: AsRef<[u8]>>(outputs: usize, model: &Model<'_, D>, protocol: &Protocol) -> Result<()> {
    match (&protocol.captions, &model.classes) {
        (Some(captions), _) => {
            captions.check()?;
            if outputs != LETTERS && outputs != LETTERS + STYLES.len() {
                let expected = format!("{LETTERS} letters, or these and {} styles", STYLES.len());
                return Err(Error::request("outputs of the classifier", expected, outputs));
            }
        }
        (None, Some(classes)) => {
            // Output k is class k: there is one for each that is asked for.
            let asked = (0..protocol.scored).map(|image| protocol.class(image, classes) as usize);
            if let Some(class) = asked.max().filter(|&class| class >= outputs) {
                let expected = format!("one for each class up to {class}");
                return Err(Error::request("outputs of the classifier", expected, outputs));
            }
        }
        (None, None) => {
            return Err(Error::request("score-n", "0 for a model without classes and prompts", protocol.scored));
        }
    }
    Ok(())
}

/// Whether a picture shows what was asked for, by each criterion.
fn right(logits: &[f32], asked: Asked, picture: &[f32], size: [usize; 2]) -> Vec<bool> {
    match asked {
        Asked::Class(class) => vec![largest(logits) == class as usize],
        Asked::Caption(attributes) => {
            let letter = largest(&logits[..LETTERS]) == attributes.letter;
            let seen = read_colours(picture, size);
            let colours = [seen.ink == attributes.colours.ink, seen.background == attributes.colours.background];
            let style = logits.get(LETTERS..).filter(|logits| !logits.is_empty());
            let style = style.map(|logits| largest(logits) == attributes.style);
            [letter, colours[0], colours[1], letter && colours[0] && colours[1]].into_iter().chain(style).collect()
        }
    }
}

/// The index of the largest value, the first of several.
fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
