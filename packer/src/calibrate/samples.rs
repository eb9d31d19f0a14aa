//! What the images of a calibration show.

use super::Settings;
use crate::error::Result;
use aquatint::Model;
use aquatint::error::Error;
use aquatint::model::Classes;
use aquatint::options::{PromptOptions, RequestOptions, read_prompts};
use aquatint::pipeline::{NoiseSource, NoiseStream, Prompts, Request};

/// The request for all images of `settings`.
///
/// # Errors
/// If the model cannot do what is asked, or reads prompts and none are given.
pub fn request<D: AsRef<[u8]>>(settings: &Settings, model: &Model<'_, D>) -> Result<Request> {
    let n = settings.images;
    let lines = settings.prompts.as_deref().map(read_prompts).transpose()?;
    let mut prompts = PromptOptions::default();
    let mut classes = None;
    match (&model.text, &model.classes, lines) {
        (Some(_), _, Some(lines)) => prompts.prompts = (0..n).map(|i| lines[pick(i, n, lines.len())].clone()).collect(),
        (Some(_), _, None) => {
            let expected = "--prompts FILE, one a line: what images of this model should show, and differ in";
            return Err(Error::request("prompts", expected, "none").into());
        }
        (None, Some(all), lines) => {
            let labels = match lines {
                Some(lines) => lines.iter().map(|line| all.label(line)).collect::<aquatint::Result<Vec<_>>>()?,
                None => labels(all),
            };
            classes = Some((0..n).map(|i| labels[pick(i, n, labels.len())]).collect::<Vec<_>>());
            prompts.class_labels.push(labels[0].to_string());
        }
        (None, None, Some(_)) => {
            let expected = "a model with prompts or classes";
            return Err(Error::request("--prompts", expected, "one that makes images of noise alone").into());
        }
        (None, None, None) => prompts.n_imgs = Some(n),
    }
    let options = RequestOptions {
        prompts,
        sampling: settings.sampling.clone(),
        seed: Some(settings.seed),
        noise: Some(settings.noise),
        batch_size: Some(settings.batch),
        ..RequestOptions::default()
    };
    let mut request = options.request(model, None)?;
    if let Some(classes) = classes {
        request.prompts = Prompts::Classes(classes);
    }
    Ok(request)
}

/// Which of `count` entries image `i` of `n` shows: each in turn, or evenly spread ones if there are more than images.
fn pick(i: usize, n: usize, count: usize) -> usize {
    if count > n { (i as u128 * count as u128 / n as u128) as usize } else { i % count }
}

/// What the values are looked at for that depend on conditions alone, where `prompts` are those of the images: as many
/// classes as give `wanted` conditions, if nobody said which; otherwise the images' own.
pub fn conditions_of<D>(settings: &Settings, model: &Model<'_, D>, prompts: &Prompts, wanted: usize) -> Prompts {
    match (prompts, &model.classes) {
        (Prompts::Classes(_), Some(all)) if settings.prompts.is_none() => {
            let labels = labels(all);
            let n = settings.images.max(wanted.min(labels.len()));
            Prompts::Classes((0..n).map(|i| labels[pick(i, n, labels.len())]).collect())
        }
        _ => prompts.clone(),
    }
}

/// All classes.
fn labels(classes: &Classes<'_>) -> Vec<u32> {
    (0..classes.count as u32).filter(|&label| label != classes.null).collect()
}

/// `request` with other prompts.
pub fn with(request: &Request, prompts: Prompts) -> Request {
    let mut request = request.clone();
    request.prompts = prompts;
    request
}

/// The request for consecutive `images` of those of `request`, with the noise that they have there.
pub fn run_of(request: &Request, images: &[usize]) -> Request {
    let mut own = with(request, request.prompts.of_images(images));
    match request.noise {
        // The noise of an image has the seed of its number, and a request counts its images.
        NoiseSource::Fast | NoiseSource::TorchEach => own.seed = request.seed.wrapping_add(images[0] as u64),
        NoiseSource::Torch => own.stream = Some(NoiseStream { images: request.prompts.len(), first: images[0] }),
    }
    own
}

/// What image `i` of `prompts` is conditioned on, and what guidance leads away from, as numbers: equal for equal
/// conditions. `null` is the class of none.
pub fn conditions(prompts: &Prompts, i: usize, null: u32) -> [usize; 2] {
    match prompts {
        Prompts::Unconditional(_) => [0; 2],
        Prompts::Classes(labels) => [labels[i] as usize, null as usize],
        // A prompt that is also a negative one may come with other numbers beside it.
        Prompts::Embeddings(embeddings) => [2 * embeddings.of_image[i][0], 2 * embeddings.of_image[i][1] + 1],
        Prompts::Texts(_) => panic!("texts have no conditions before they are encoded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_turn_or_evenly_spread() {
        let picked = |n, count| (0..n).map(|i| pick(i, n, count)).collect::<Vec<_>>();
        assert_eq!(picked(5, 2), [0, 1, 0, 1, 0]);
        assert_eq!(picked(3, 3), [0, 1, 2]);
        assert_eq!(picked(4, 1000), [0, 250, 500, 750]);
    }
}
