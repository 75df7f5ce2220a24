//! The host side of three models: checkpoints, tokenizers and templates, checked against each other. No device work.

use crate::Result;
use crate::checkpoint::{Checkpoint, Source, same_files};
use crate::text::prompt::RoleText;
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::text::vocabulary::{Comparison, IdPolicy, RoleVocabulary, Vocabulary};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Where the three models are. A missing expert or anti-expert is stood in for by the base.
#[derive(Clone, Debug)]
pub struct TrioSources {
    /// The large model.
    pub base: Source,
    /// The small tuned model.
    pub expert: Option<Source>,
    /// The small untuned model.
    pub anti_expert: Option<Source>,
}

impl TrioSources {
    /// One model alone.
    pub fn alone(base: Source) -> Self {
        Self { base, expert: None, anti_expert: None }
    }

    /// The sources that differ, and which of them each role uses.
    pub fn distinct(&self) -> Result<(Vec<&Source>, [usize; 3])> {
        let roles = [Some(&self.base), self.expert.as_ref(), self.anti_expert.as_ref()];
        let mut distinct: Vec<&Source> = Vec::new();
        let mut member_of_role = [0; 3];
        for (member, source) in member_of_role.iter_mut().zip(roles) {
            let source = source.unwrap_or(&self.base);
            let known = distinct.iter().map(|other| same_files(source, other)).collect::<Result<Vec<_>>>()?;
            *member = known.iter().position(|&same| same).unwrap_or(distinct.len());
            if *member == distinct.len() {
                distinct.push(source);
            }
        }
        Ok((distinct, member_of_role))
    }
}

/// A distinct checkpoint with its text side.
struct Member {
    checkpoint: Checkpoint,
    /// Shared by members with equal files: it is large beside a small model, and takes long to read.
    tokenizer: Arc<Tokenizer>,
    /// A broken template is an error where a chat is asked for: plain prompts do without it.
    template: Result<Option<ChatTemplate>>,
}

/// Three models opened, not yet known to fit together.
pub struct Models {
    members: Vec<Member>,
    member_of_role: [usize; 3],
}

impl Models {
    /// Opens and checks each model by itself.
    pub fn open(sources: &TrioSources) -> Result<Self> {
        let (distinct, member_of_role) = sources.distinct()?;
        let (texts, text_of_member) = distinct_texts(&distinct);
        let (checkpoints, tokenizers) = thread::scope(|scope| {
            // At once: most of the time goes into tokenizers, which are read by one thread each.
            let reading: Vec<_> = texts.iter().map(|source| scope.spawn(|| Tokenizer::open(source))).collect();
            let checkpoints = distinct.iter().map(|&source| Checkpoint::open(source.clone()));
            let checkpoints = checkpoints.collect::<Result<Vec<_>>>()?;
            let read = reading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            Ok((checkpoints, read.map(|tokenizer| tokenizer.map(Arc::new)).collect::<Result<Vec<_>>>()?))
        })?;
        let member = |(checkpoint, (source, text)): (Checkpoint, (&&Source, usize))| {
            let tokenizer = tokenizers[text].clone();
            Member { template: ChatTemplate::open(source, tokenizer.config()), checkpoint, tokenizer }
        };
        let members = checkpoints.into_iter().zip(distinct.iter().zip(text_of_member)).map(member).collect();
        Ok(Self { members, member_of_role })
    }

    /// Uses the chat template in a file for every role, in place of the models' own.
    pub fn set_chat_template(&mut self, path: &Path) -> Result<()> {
        for member in &mut self.members {
            member.template = Ok(Some(ChatTemplate::open_file(path, member.tokenizer.config())?));
        }
        Ok(())
    }

    /// Takes weights that are NaN or infinite as they are.
    pub fn allow_non_finite_weights(&mut self) {
        self.members.iter_mut().for_each(|member| member.checkpoint.allow_non_finite());
    }

    /// The three vocabularies side by side.
    pub fn compare(&self, policies: &[(u32, IdPolicy)]) -> Result<Comparison> {
        let roles = self.roles().map(|member| RoleVocabulary::new(&member.tokenizer, &member.checkpoint));
        Comparison::new(&roles, policies)
    }

    /// The checkpoint of each role.
    pub fn checkpoint_of_role(&self) -> [&Checkpoint; 3] {
        self.roles().map(|member| &member.checkpoint)
    }

    /// Which distinct checkpoint each role uses, counted from 0: base, expert, anti-expert.
    pub fn member_of_role(&self) -> [usize; 3] {
        self.member_of_role
    }

    /// What each role needs to make its prompt.
    pub fn role_texts(&self) -> [RoleText<'_>; 3] {
        self.roles().map(|member| RoleText {
            tokenizer: &member.tokenizer,
            template: member.template.as_ref().map(Option::as_ref),
            width: member.checkpoint.config.n_vocab,
        })
    }

    fn roles(&self) -> [&Member; 3] {
        self.member_of_role.map(|member| &self.members[member])
    }
}

/// The first source of each tokenizer, and which of them each model uses: those with equal files share one.
fn distinct_texts<'a>(models: &[&'a Source]) -> (Vec<&'a Source>, Vec<usize>) {
    let mut texts: Vec<&Source> = Vec::new();
    let text_of_member = models.iter().map(|&source| {
        // What cannot be compared cannot be opened either, and opening it says why.
        let known = texts.iter().position(|text| Tokenizer::same_files(source, text).unwrap_or(false));
        known.unwrap_or_else(|| {
            texts.push(source);
            texts.len() - 1
        })
    });
    let text_of_member = text_of_member.collect();
    (texts, text_of_member)
}

/// Three models that can be combined: three roles over one to three distinct checkpoints.
pub struct Trio {
    models: Models,
    vocabulary: Vocabulary,
    warnings: Vec<String>,
}

impl Trio {
    /// Opens the models and combines their vocabularies.
    pub fn open(sources: &TrioSources, policies: &[(u32, IdPolicy)]) -> Result<Self> {
        Self::combine(Models::open(sources)?, policies)
    }

    /// Combines the vocabularies of open models.
    pub fn combine(models: Models, policies: &[(u32, IdPolicy)]) -> Result<Self> {
        let comparison = models.compare(policies)?;
        Ok(Self { vocabulary: comparison.vocabulary()?, warnings: comparison.warnings, models })
    }

    /// The models.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The distinct checkpoints.
    pub fn checkpoints(&self) -> Vec<&Checkpoint> {
        self.models.members.iter().map(|member| &member.checkpoint).collect()
    }

    /// Which of [`Self::checkpoints`] each role uses: base, expert, anti-expert.
    pub fn member_of_role(&self) -> [usize; 3] {
        self.models.member_of_role()
    }

    /// The tokenizer of each role.
    pub fn tokenizers(&self) -> [&Tokenizer; 3] {
        self.models.roles().map(|member| &*member.tokenizer)
    }

    /// What the three vocabularies share.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// What about the vocabularies may matter to a person.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes that an id adds to the text; none for special tokens.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.tokenizers()[0].shown_bytes(id)
    }
}
