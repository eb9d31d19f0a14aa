//! Rules in order, the first of which that matches a layer decides: how other projects say which layers they mean.

use super::LayerSpec;
use crate::source::layout::authors_paths;
use regex::Regex;

/// A rule of another project's configuration.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What the file says, for reports.
    pub(super) key: String,
    pattern: Pattern,
    pub(super) spec: LayerSpec,
    /// What to tell where it is for a layer; such a rule may be for none.
    pub(super) note: Option<&'static str>,
}

/// Which layers a rule is for.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// All of them.
    Any,
    /// Those whose module path a regular expression finds a part of.
    Path(Regex),
    /// Those with these components in a row, as ViDiT-Q matches lists of layers: `*` is any, `[3-7]` a number among those.
    Components(String),
    /// Those whose module path has this part.
    Part(String),
    /// Those that both are for.
    Both(Box<[Pattern; 2]>),
    /// Those whose path in the course project has this part.
    Course(String),
}

impl Pattern {
    /// For layers that `other` is for, too.
    pub(super) fn and(self, other: Pattern) -> Pattern {
        Pattern::Both(Box::new([self, other]))
    }

    fn matches(&self, layer: &str) -> bool {
        match self {
            Pattern::Any => true,
            Pattern::Path(regex) => regex.is_match(layer),
            Pattern::Components(parts) => has_components(layer, parts),
            Pattern::Part(part) => layer.contains(part),
            Pattern::Both(both) => both.iter().all(|pattern| pattern.matches(layer)),
            Pattern::Course(part) => course_path(layer).is_some_and(|path| path.contains(part)),
        }
    }
}

impl Rule {
    pub(super) fn new(key: &str, pattern: Pattern, spec: LayerSpec) -> Self {
        Rule { key: key.to_owned(), pattern, spec, note: None }
    }

    /// The same, of what a project has in its code and not in its files: `note` tells of it where it is for a layer.
    pub(super) fn unwritten(self, note: &'static str) -> Self {
        Rule { note: Some(note), ..self }
    }

    /// Whether it is for the layer with this module path, as diffusers has it, under this or one of its authors' names.
    pub(super) fn matches(&self, layer: &str) -> bool {
        self.pattern.matches(layer) || authors_paths(layer).iter().any(|path| self.pattern.matches(path))
    }

    /// Whether it is for whatever no other rule is for.
    pub(super) fn is_rest(&self) -> bool {
        matches!(self.pattern, Pattern::Any)
    }
}

/// Whether the components of `path` have those of `parts` in a row; a layer's name may or may not begin with `model`.
pub(crate) fn has_components(path: &str, parts: &str) -> bool {
    let own: Vec<&str> = path.split('.').collect();
    let parts: Vec<&str> = parts.strip_prefix("model.").unwrap_or(parts).split('.').collect();
    let alike = |(own, part): (&&str, &&str)| match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')) {
        Some(range) => range.split_once('-').is_some_and(|(first, last)| {
            let numbers = (own.parse::<u32>(), first.parse(), last.parse());
            matches!(numbers, (Ok(n), Ok(first), Ok(last)) if (first..=last).contains(&n))
        }),
        None => *part == "*" || own == part,
    };
    own.windows(parts.len()).any(|run| run.iter().zip(&parts).all(alike))
}

/// The path that the course project gives to a layer of Stable Diffusion 1.5's UNet; none for others. Its paths begin with a
/// dot. Levels have two residual blocks on the way down and three on the way up.
fn course_path(layer: &str) -> Option<String> {
    let parts: Vec<&str> = layer.split('.').collect();
    let number = |at: usize| parts.get(at)?.parse::<usize>().ok();
    Some(match parts[..] {
        ["conv_in"] => ".unet.encoders.0.0".into(),
        ["conv_out"] => ".final.conv".into(),
        ["time_embedding", linear] => format!(".time_embedding.{linear}"),
        ["mid_block", "resnets", _, ref rest @ ..] => {
            format!(".unet.bottleneck.{}.{}", 2 * number(2)?, residual(rest)?)
        }
        ["mid_block", "attentions", _, ref rest @ ..] => format!(".unet.bottleneck.1.{}", attention(rest)?),
        ["down_blocks", _, "downsamplers", _, "conv"] => format!(".unet.encoders.{}.0", 3 * number(1)? + 3),
        ["up_blocks", _, "upsamplers", _, "conv"] => {
            // The deepest level does not attend.
            let at = if number(1)? == 0 { 1 } else { 2 };
            format!(".unet.decoders.{}.{at}.conv", 3 * number(1)? + 2)
        }
        [way @ ("down_blocks" | "up_blocks"), _, kind, _, ref rest @ ..] => {
            let block = 3 * number(1)? + number(3)?;
            let (at, rest) = match kind {
                "resnets" => (0, residual(rest)?.to_owned()),
                "attentions" => (1, attention(rest)?),
                _ => return None,
            };
            match way {
                "down_blocks" => format!(".unet.encoders.{}.{at}.{rest}", block + 1),
                _ => format!(".unet.decoders.{block}.{at}.{rest}"),
            }
        }
        _ => return None,
    })
}

fn residual(rest: &[&str]) -> Option<&'static str> {
    Some(match rest {
        ["conv1"] => "conv_feature",
        ["conv2"] => "conv_merged",
        ["time_emb_proj"] => "linear_time",
        ["conv_shortcut"] => "residual_layer",
        _ => return None,
    })
}

fn attention(rest: &[&str]) -> Option<String> {
    Some(match rest {
        ["proj_in"] => "conv_input".into(),
        ["proj_out"] => "conv_output".into(),
        [_, _, "ff", "net", "0", "proj"] => "linear_geglu_1".into(),
        [_, _, "ff", "net", "2"] => "linear_geglu_2".into(),
        // Queries, keys and values of self-attention are one layer there.
        [_, _, "attn1", "to_q" | "to_k" | "to_v"] => "attention_1.in_proj".into(),
        [_, _, "attn1", "to_out", "0"] => "attention_1.out_proj".into(),
        [_, _, "attn2", "to_out", "0"] => "attention_2.out_proj".into(),
        [_, _, "attn2", to] => format!("attention_2.{}_proj", to.strip_prefix("to_")?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_layers_match_components() {
        for (path, parts, expected) in [
            ("blocks.3.attn.q", "blocks.3", true),
            ("blocks.3.attn.q", "model.blocks.3.attn.q", true),
            ("blocks.3.attn.q", "attn", true),
            ("blocks.3.attn.q", "att", false),
            ("blocks.3.attn.q", "blocks.*.attn", true),
            ("blocks.3.attn.q", "blocks.[1-3]", true),
            ("blocks.13.attn.q", "blocks.[1-3]", false),
            ("blocks.3.attn.q", "q.3", false),
            ("q", "blocks.3.attn.q", false),
            ("blocks.3", "blocks.[3]", false),
        ] {
            assert_eq!(has_components(path, parts), expected, "{path} {parts}");
        }
    }

    #[test]
    fn paths_of_the_course_are_those_of_its_modules() {
        for (layer, expected) in [
            ("conv_in", Some(".unet.encoders.0.0")),
            ("time_embedding.linear_2", Some(".time_embedding.linear_2")),
            ("down_blocks.0.resnets.1.conv1", Some(".unet.encoders.2.0.conv_feature")),
            ("down_blocks.0.downsamplers.0.conv", Some(".unet.encoders.3.0")),
            ("down_blocks.2.downsamplers.0.conv", Some(".unet.encoders.9.0")),
            ("down_blocks.3.resnets.1.time_emb_proj", Some(".unet.encoders.11.0.linear_time")),
            ("mid_block.resnets.1.conv2", Some(".unet.bottleneck.2.conv_merged")),
            ("mid_block.attentions.0.proj_in", Some(".unet.bottleneck.1.conv_input")),
            ("up_blocks.0.upsamplers.0.conv", Some(".unet.decoders.2.1.conv")),
            ("up_blocks.2.upsamplers.0.conv", Some(".unet.decoders.8.2.conv")),
            ("up_blocks.3.resnets.2.conv_shortcut", Some(".unet.decoders.11.0.residual_layer")),
            ("up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k", Some(".unet.decoders.5.1.attention_2.k_proj")),
            ("conv_out", Some(".final.conv")),
            ("transformer_blocks.0.attn1.to_q", None),
            ("down_blocks.x.resnets.0.conv1", None),
        ] {
            assert_eq!(course_path(layer).as_deref(), expected, "{layer}");
        }
    }
}
