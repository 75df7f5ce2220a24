//! What the ids of three tokenizers have in common: which may be sampled, and what they mean.
//!
//! Ids are compared by the bytes they decode to, one by one, never by count: two tokenizers of one size can differ, and two
//! of different size (padding, added tokens) can agree wherever both define an id.

use super::tokenizer::Tokenizer;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::str::FromStr;

/// The roles in their order, as messages and JSON name them.
pub const ROLES: [&str; 3] = ["base", "expert", "anti_expert"];
/// Differing ids that a report spells out.
const MAX_LISTED: usize = 20;

/// What to do with an id that the three tokenizers define differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdPolicy {
    /// Use the difference of expert and anti-expert, as for any other id.
    Delta,
    /// The base alone decides: the difference counts as zero.
    Zero,
    /// Never sampled.
    Ban,
}

impl FromStr for IdPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "delta" => Ok(IdPolicy::Delta),
            "zero" => Ok(IdPolicy::Zero),
            "ban" => Ok(IdPolicy::Ban),
            other => Err(Error::argument("id_policy", format!("{other:?}, must be ID=delta, ID=zero or ID=ban"))),
        }
    }
}

/// What one role brings to the comparison.
#[derive(Clone)]
pub struct RoleVocabulary<'a> {
    /// The role's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Width of a row of the role's logits.
    pub width: usize,
    /// Stop ids by the file that names them.
    pub eos: Vec<(u32, &'static str)>,
}

impl<'a> RoleVocabulary<'a> {
    /// The vocabulary of an open model.
    pub fn new(tokenizer: &'a Tokenizer, checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config.eos_ids.iter().map(|&id| (id, "config.json"));
        let generation = checkpoint.generation.eos_ids.iter().map(|&id| (id, "generation_config.json"));
        let own = tokenizer.eos_id().map(|id| (id, "tokenizer_config.json"));
        let eos = config.chain(generation).chain(own).collect();
        RoleVocabulary { tokenizer, width: checkpoint.config.n_vocab, eos }
    }
}

/// The ids that a combined step may sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// One more than the highest live id: columns at or past it are never read into a result.
    pub n_ids: usize,
    /// One bit per id, low bit first: the ids that may be sampled.
    pub live: Vec<u32>,
    /// Live ids whose difference counts as zero.
    pub zero_delta_ids: Vec<u32>,
    /// Live ids that end a response: the union over the roles.
    pub stop_ids: Vec<u32>,
}

impl Vocabulary {
    /// Whether `id` may be sampled.
    pub fn is_live(&self, id: u32) -> bool {
        self.live.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// How many ids may be sampled.
    pub fn n_live(&self) -> usize {
        self.live.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// Three vocabularies side by side, whether or not they can be combined. What `compat` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Ids that all three define with the same bytes.
    pub n_shared: usize,
    /// Ids that at least one defines and another does not: not sampled.
    pub n_partial: usize,
    /// Ids that all three define, not all with the same bytes.
    pub n_differing: usize,
    /// The first of the differing ids.
    pub differing: Vec<DifferingId>,
    /// Ids that end a response, with who says so.
    pub stops: Vec<StopId>,
    /// Ids of tokenizers, in order of roles.
    pub n_tokenizer_ids: [usize; 3],
    /// Widths of rows of logits, in order of roles.
    pub widths: [usize; 3],
    /// What may matter to a person.
    pub warnings: Vec<String>,
    #[serde(skip)]
    live: Vec<u32>,
    #[serde(skip)]
    zero_delta_ids: Vec<u32>,
    #[serde(skip)]
    unresolved: Option<DifferingId>,
}

/// An id that is not the same in the three tokenizers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DifferingId {
    /// The id.
    pub id: u32,
    /// What it decodes to, in order of roles; invalid UTF-8 replaced.
    pub strings: [String; 3],
    /// What the user wants done.
    pub policy: Option<IdPolicy>,
}

/// An id that ends a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StopId {
    /// The id.
    pub id: u32,
    /// What it decodes to in the base's tokenizer.
    pub text: Option<String>,
    /// Roles and files that name it.
    pub sources: Vec<String>,
    /// Whether it can be sampled at all.
    pub live: bool,
}

impl Comparison {
    /// Compares id by id. Fails where a policy makes no sense or a tokenizer does not fit its own model.
    pub fn new(roles: &[RoleVocabulary; 3], policies: &[(u32, IdPolicy)]) -> Result<Self> {
        let mut warnings = Vec::new();
        for (role, name) in roles.iter().zip(ROLES) {
            warnings.extend(check_width(role, name)?);
        }
        let widths = [0, 1, 2].map(|i| roles[i].width);
        let n_tokenizer_ids = [0, 1, 2].map(|i| roles[i].tokenizer.n_ids());
        let policies = checked_policies(roles, policies)?;
        let mut comparison = Comparison {
            n_shared: 0,
            n_partial: 0,
            n_differing: 0,
            differing: Vec::new(),
            stops: Vec::new(),
            n_tokenizer_ids,
            widths,
            warnings,
            live: Vec::new(),
            zero_delta_ids: Vec::new(),
            unresolved: None,
        };
        let n_columns = widths.into_iter().min().expect("three widths");
        for id in 0..n_tokenizer_ids.into_iter().max().expect("three tokenizers") as u32 {
            comparison.add(roles, id, (id as usize) < n_columns, policies.get(&id).copied());
        }
        comparison.add_stops(roles);
        Ok(comparison)
    }

    /// The combined vocabulary, if there is one.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        if let Some(DifferingId { id, strings: [base, expert, anti], .. }) = &self.unresolved {
            let others = match self.n_differing - 1 {
                0 => String::new(),
                n => format!(", and {n} other ids differ"),
            };
            return Err(Error::vocabulary(format!(
                "token id {id} is {base:?} in base, {expert:?} in expert, {anti:?} in anti_expert{others}; \
                 where that is intended, list it: --id-policy {id}=delta|zero|ban"
            )));
        }
        let Some(last) = self.live.iter().rposition(|&word| word != 0) else {
            return Err(Error::vocabulary("the three tokenizers have no token id in common"));
        };
        let stop_ids = self.stops.iter().filter(|stop| stop.live).map(|stop| stop.id).collect();
        Ok(Vocabulary {
            n_ids: 32 * last + 32 - self.live[last].leading_zeros() as usize,
            live: self.live[..=last].to_vec(),
            zero_delta_ids: self.zero_delta_ids.clone(),
            stop_ids,
        })
    }

    fn add(&mut self, roles: &[RoleVocabulary; 3], id: u32, has_columns: bool, policy: Option<IdPolicy>) {
        let bytes = [0, 1, 2].map(|i| roles[i].tokenizer.bytes_of(id));
        let mut is_live = false;
        match bytes {
            [Some(base), Some(expert), Some(anti)] if base == expert && base == anti => {
                self.n_shared += 1;
                is_live = true;
            }
            [Some(base), Some(expert), Some(anti)] => {
                let strings = [base, expert, anti].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                let differing = DifferingId { id, strings, policy };
                if self.differing.len() < MAX_LISTED {
                    self.differing.push(differing.clone());
                }
                if policy.is_none() && self.unresolved.is_none() {
                    self.unresolved = Some(differing);
                }
                self.n_differing += 1;
            }
            [None, None, None] => {}
            _ => self.n_partial += 1,
        }
        is_live = match policy {
            Some(policy) => policy != IdPolicy::Ban,
            None => is_live && has_columns,
        };
        if is_live {
            self.live.resize(self.live.len().max(id as usize / 32 + 1), 0);
            self.live[id as usize / 32] |= 1 << (id % 32);
        }
        if policy == Some(IdPolicy::Zero) {
            self.zero_delta_ids.push(id);
        }
    }

    fn add_stops(&mut self, roles: &[RoleVocabulary; 3]) {
        let mut sources: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (role, name) in roles.iter().zip(ROLES) {
            for (id, file) in &role.eos {
                sources.entry(*id).or_default().push(format!("{name} {file}"));
            }
        }
        for (id, sources) in sources {
            let text = roles[0].tokenizer.bytes_of(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            let live = self.live.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
            if !live {
                self.warnings.push(format!("stop id {id} ({}) is never sampled", sources.join(", ")));
            }
            self.stops.push(StopId { id, text, sources, live });
        }
        if !self.stops.iter().any(|stop| stop.live) {
            self.warnings.push("no stop id can be sampled: a response ends only at max_tokens".to_string());
        }
    }
}

/// A model's own vocabulary must fit its logits. Tokens added later often do not (a pad token without a resized embedding):
/// those are never sampled, and a prompt that holds one is refused.
fn check_width(role: &RoleVocabulary, name: &str) -> Result<Option<String>> {
    let (tokenizer, width) = (role.tokenizer, role.width);
    let mut past = (width as u32..tokenizer.n_ids() as u32).filter(|&id| tokenizer.bytes_of(id).is_some());
    let Some(first) = past.next() else { return Ok(None) };
    match past.chain([first]).find(|&id| !tokenizer.is_added(id)) {
        Some(id) => Err(Error::vocabulary(format!(
            "{name}: {} defines token id {id}, but the model has only {width} rows of logits",
            tokenizer.path().display()
        ))),
        None => Ok(Some(format!("{name}: added tokens from id {first} on are past the {width} rows of logits"))),
    }
}

fn checked_policies(roles: &[RoleVocabulary; 3], policies: &[(u32, IdPolicy)]) -> Result<BTreeMap<u32, IdPolicy>> {
    let mut checked = BTreeMap::new();
    for &(id, policy) in policies {
        let refuse = |message: String| Err(Error::argument("id_policy", message));
        if checked.insert(id, policy).is_some() {
            return refuse(format!("id {id} is listed twice"));
        }
        if policy == IdPolicy::Ban {
            continue;
        }
        if roles[0].tokenizer.bytes_of(id).is_none() {
            return refuse(format!("id {id} is not in the base's tokenizer"));
        }
        if let Some(i) = (0..3).find(|&i| id as usize >= roles[i].width) {
            return refuse(format!("id {id} is past the {} rows of logits of {}", roles[i].width, ROLES[i]));
        }
    }
    Ok(checked)
}
