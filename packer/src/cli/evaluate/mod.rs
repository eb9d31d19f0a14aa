//! `packer evaluate`.

mod networks;
mod rows;

use super::{pack, say, say_json, say_line};
use crate::error::Result;
use aquatint::error::one_line;
use aquatint::options::SamplingOptions;
use aquatint::raw::whole_file::{WholeFile, check_target};
use aquatint::{Cpu, Error, Model};
use aquatint_evaluation::{
    Calls, Captions, File, Folder, Progress, Protocol, Report, SEED, Scorer, evaluate, evaluate_folders,
};
use clap::Args;
use networks::Networks;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Images that are scored when there is a classifier, or Inception: 80 per letter, in which two points of difference show.
const SCORED: usize = 2080;

/// Arguments of a comparison.
#[derive(Debug, Args)]
pub(super) struct Evaluate {
    /// Packed files of one model, in the order of the table; each is compared with the reference and the row above it. With
    /// --images, folders of pictures.
    #[arg(required = true, value_name = "FILE.aqt|DIR")]
    files: Vec<PathBuf>,
    /// Compare folders of pictures that were made already: picture by picture where names are the same, and as a whole by the
    /// networks below. Unless there are --reference-features, the first folder's pictures are taken for true ones.
    #[arg(
        long,
        conflicts_with_all = ["n", "score_n", "classifier", "steps", "sampler", "cfg_scale", "seed", "calls", "at", "batch"]
    )]
    images: bool,
    /// The file that others are compared with, best one of f32 [default: the first]
    #[arg(long, value_name = "FILE.aqt|DIR")]
    reference: Option<PathBuf>,
    /// Images whose network calls, latents and pixels are compared.
    #[arg(long, default_value_t = 128, value_name = "N")]
    n: usize,
    /// Images that are scored by --classifier, --inception or --clip; 0 for none [default: 2080, with --clip alone as many as --n]
    #[arg(long, alias = "score_n", value_name = "N")]
    score_n: Option<usize>,
    /// What reads images: safetensors with conv1, conv2.., fc1 and fc2, as models/glyphs/classifier.safetensors is.
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// True images for the Fréchet distance and, where they are known one by one, the kernel distance: a folder of pictures, or a
    /// file, .npz or safetensors, with features (n, d), or mu or mean (d) and sigma or covariance (d, d) of features, those of
    /// Inception, or without it of the classifier.
    #[arg(long, alias = "reference_features", value_name = "FILE|DIR")]
    reference_features: Option<PathBuf>,
    #[command(flatten)]
    networks: Networks,
    /// What images show, one caption a line, in turn; for models that read texts. For the classifier each names a letter and two
    /// colours, as "a bold red A on blue" does.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Sampler steps [default: the reference's]
    #[arg(short, long, alias = "num-inference-steps", value_name = "N")]
    steps: Option<usize>,
    /// The sampler [default: the reference's]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// Guidance scale; 1 or less turns guidance off [default: the reference's]
    #[arg(short = 'g', long, aliases = ["cfg_scale", "guidance-scale"], allow_negative_numbers = true, value_name = "SCALE")]
    cfg_scale: Option<f32>,
    /// Seed of the first image's noise; image k has that of seed + k. Calibration counts from 0.
    #[arg(long, default_value_t = SEED, value_name = "K")]
    seed: u64,
    /// Network calls whose errors are looked at, evenly spread over the run [default: all up to 50; 10 for models of more
    /// than 100 MB]
    #[arg(long, conflicts_with = "at", value_name = "N")]
    calls: Option<usize>,
    /// The same by their numbers in the run, from 0, such as 2,13,25.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    at: Option<Vec<usize>>,
    /// Images per pass through the network; no figure depends on it [default: 26, or 4 for models of more than 100 MB]
    #[arg(short, long, alias = "batch-size", value_name = "N")]
    batch: Option<usize>,
    /// Write all figures as JSON to a file, or to standard output (-) in place of the table.
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Print no table, and show no progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub(super) fn run(args: &Evaluate) -> Result<()> {
    let paths = args.paths();
    let json = args.json.as_deref().filter(|path| *path != Path::new("-"));
    if let Some(target) = json {
        let read = [&args.classifier, &args.reference_features, &args.prompts];
        let read = read.into_iter().flatten().map(PathBuf::as_path).chain(args.networks.paths());
        check_target(target, &paths.iter().copied().chain(read).collect::<Vec<_>>())?;
    }
    let protocol = args.protocol()?;
    let scorer = args.scorer(&protocol)?;
    let bar = pack::bar(args.quiet);
    let mut see = |Progress { done, total }: Progress| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let report = match args.images {
        true => folders(&paths, &protocol, scorer, &mut see),
        false => files(&paths, &protocol, &scorer, &mut see),
    };
    bar.finish_and_clear();
    let report = report?;
    if let Some(target) = json {
        write(target, &report)?;
    } else if args.json.is_some() {
        return say_json(&report);
    }
    if !args.quiet {
        print(&report);
    }
    Ok(())
}

/// Compares packed files.
fn files(paths: &[&Path], protocol: &Protocol, scorer: &Scorer, see: &mut dyn FnMut(Progress)) -> Result<Report> {
    let packed = paths.iter().map(aquatint::open).collect::<aquatint::Result<Vec<_>>>()?;
    let models = packed.iter().map(Model::new).collect::<aquatint::Result<Vec<_>>>()?;
    let files = names(paths).into_iter().zip(&models).map(|(name, model)| File { name, model }).collect::<Vec<_>>();
    Ok(evaluate(&Cpu::best(), &files, protocol, Some(scorer), see)?)
}

/// Compares folders of pictures.
fn folders(paths: &[&Path], protocol: &Protocol, scorer: Scorer, see: &mut dyn FnMut(Progress)) -> Result<Report> {
    let mut folders = paths.iter().map(|path| Folder::new(path)).collect::<aquatint::Result<Vec<_>>>()?;
    folders.iter_mut().zip(names(paths)).for_each(|(folder, name)| folder.name = name);
    Ok(evaluate_folders(&folders, protocol, scorer, see)?)
}

impl Evaluate {
    /// The reference, then the other files.
    fn paths(&self) -> Vec<&Path> {
        let others = self.files.iter().filter(|file| self.reference.as_ref() != Some(file));
        self.reference.iter().chain(others).map(PathBuf::as_path).collect()
    }

    /// Images that are scored.
    fn scored(&self) -> usize {
        match self.score_n {
            Some(n) => n,
            None if self.classifier.is_some() || self.networks.makes_features() => SCORED,
            None if self.networks.reads_captions() => self.n,
            None => 0,
        }
    }

    /// Who reads the images of `protocol`.
    fn scorer(&self, protocol: &Protocol) -> Result<Scorer> {
        if self.reference_features.is_some() && self.classifier.is_none() && !self.networks.makes_features() {
            let expected = "a network that makes features (--inception or --classifier)";
            return Err(Error::request("reference-features", expected, "none").into());
        }
        let scores = protocol.scored > 0 || self.images;
        let mut scorer = match self.classifier.as_deref().filter(|_| scores) {
            Some(path) => Scorer::open(path, None)?,
            None => Scorer::default(),
        };
        self.networks.add_to(&mut scorer, protocol.captions.as_ref(), scores)?;
        match self.reference_features.as_deref().filter(|_| scores) {
            Some(path) => Ok(scorer.with_reference(path)?),
            None => Ok(scorer),
        }
    }

    fn protocol(&self) -> Result<Protocol> {
        let captions = self.prompts.as_deref().map(|path| -> Result<Captions> {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            Ok(Captions::new(&path.display().to_string(), &text)?)
        });
        let calls = match (&self.at, self.calls) {
            (Some(at), _) => Calls::At(at.clone()),
            (None, Some(n)) => Calls::Quantiles(n),
            (None, None) => Calls::Fitting,
        };
        let sampling = SamplingOptions {
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            sampler: self.sampler.clone(),
            ..SamplingOptions::default()
        };
        Ok(Protocol {
            images: self.n,
            scored: self.scored(),
            batch: self.batch,
            seed: self.seed,
            calls,
            sampling,
            captions: captions.transpose()?,
            ..Protocol::default()
        })
    }
}

/// What files are called in reports: by their names, if these differ, else by their paths.
fn names(paths: &[&Path]) -> Vec<String> {
    let short: Vec<_> = paths.iter().map(|path| path.file_name().map_or(path.as_os_str(), OsStr::new)).collect();
    let alone =
        |i: usize| short.iter().enumerate().all(|(j, name)| i == j || *name != short[i] || paths[i] == paths[j]);
    let all_alone = (0..paths.len()).all(alone);
    let name = |(path, short): (&&Path, &&OsStr)| if all_alone { Path::new(short) } else { path }.display().to_string();
    paths.iter().zip(&short).map(name).collect()
}

fn write(target: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report).map_err(|e| Error::request("report", "values JSON can hold", e))?;
    let mut out = WholeFile::create(target)?;
    writeln!(out, "{text}").map_err(Error::io("write", target))?;
    Ok(out.commit()?)
}

/// Prints the table, and what its signs mean.
fn print(report: &Report) {
    let conditions = &report.conditions;
    if let Some(run) = &conditions.run {
        let images = conditions.images.max(conditions.scored);
        say_line(format!(
            "{images} images (seeds {} to {}), {} of {} steps, guidance {}; reference {}",
            run.seeds[0], run.seeds[1], run.sampler, run.steps, run.guidance_scale, conditions.reference
        ));
        let scored = if conditions.scored > 0 { format!("; scored: {}", conditions.scored) } else { String::new() };
        say_line(format!(
            "compared: {} images, at {} of {} network calls{scored}",
            conditions.images,
            run.calls.len(),
            run.calls_of_run
        ));
    } else {
        say_line(format!("{} pictures; reference {}", conditions.images, conditions.reference));
    }
    conditions.networks.iter().for_each(say_line);
    say("");
    say(rows::table(report));
    say("");
    rows::legend(report).into_iter().for_each(say_line);
    report.notes.iter().for_each(|note| eprintln!("note: {}", one_line(note)));
}
