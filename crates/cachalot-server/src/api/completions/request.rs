//! Requests for completions: what they may say, and the prompts that they hold.

use cachalot_engine::SamplingParams;
use cachalot_engine::session::{Prefill, Request as EngineRequest};
use cachalot_text::conversation::Effort;
use cachalot_text::prompt;
use cachalot_text::request::{self, RequestedSampling};
use cachalot_text::sampling::{MAX_OUTPUT, Mode, output_limit};
use cachalot_text::spelling::{BOS, FIM_BEGIN, FIM_END, FIM_HOLE};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::{model_name, parse};
use crate::app::App;
use crate::error::ApiError;
use crate::prepare::choice;

/// Tokens where a request does not say, as OpenAI's API has it.
const DEFAULT_TOKENS: u32 = 16;

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// The model; this server's if absent.
    model: Option<String>,
    /// A text, token ids, or a list of either.
    prompt: Option<Prompts>,
    /// Text behind the hole to fill; one prompt only.
    suffix: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// 0 or -1 for all.
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    /// 1.
    n: Option<u32>,
    stop: Option<Stop>,
    seed: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Alternatives per token.
    logprobs: Option<u8>,
    /// Whether the prompt comes before the answer.
    echo: Option<bool>,
}

/// See [`CompletionRequest`].
#[derive(Debug, Deserialize, ToSchema)]
pub struct StreamOptions {
    include_usage: Option<bool>,
}

/// See [`CompletionRequest`].
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, a list of texts, a list of token ids, or a list of such lists")]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// See [`CompletionRequest`].
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// A request that is ready.
pub struct Ready {
    /// The name under which the model answers.
    pub model: String,
    /// The prompts.
    pub prompts: Vec<Ask>,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Whether events are wanted.
    pub stream: bool,
    /// Whether a last event tells the usage.
    pub include_usage: bool,
    /// Whether log-probabilities are wanted.
    pub logprobs: bool,
    /// What was dropped.
    pub ignored: Vec<String>,
}

/// A prompt, and what is asked of it.
pub struct Ask {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// How it is answered.
    pub engine: EngineRequest,
    /// What is repeated before the answer, if anything.
    pub echo: Option<Echo>,
}

/// A prompt that is repeated.
pub struct Echo {
    /// As it was given.
    pub text: String,
    /// Its tokens: without the begin of sentence that was put before a text.
    pub ids: Vec<u32>,
}

/// Reads a request; on a thread of its own.
///
/// # Errors
/// If it cannot be carried out; names the field.
pub fn ready(app: &App, body: &str) -> Result<Ready, ApiError> {
    let mut fields: Map<String, Value> = parse(body)?;
    let ignored = request::check_completion(&mut fields)?;
    let request: CompletionRequest = request::typed(fields.into())?;
    let model = model_name(app, request.model.clone())?;
    if app.options.log_prompts {
        tracing::info!(body, "a prompt");
    }
    check(&request)?;
    let stop = match request.stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stop)) => stop,
    };
    if stop.len() > 16 {
        return Err(ApiError::field("stop", format!("Stop string array too long: {}", stop.len())));
    }
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::field("stop", "Invalid 'stop': empty string."));
    }
    let sampling = RequestedSampling {
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        top_k: request.top_k.map(|top_k| top_k.max(0) as u32),
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        seed: request.seed,
        ..RequestedSampling::default()
    };
    let mode = Mode { thinking: false, tools: false, effort: Effort::High };
    let params = choice(&sampling).resolve(app.card.family(), mode);
    params.validate()?;
    let echo = request.echo.unwrap_or(false);
    let mut prompts = Vec::new();
    for encoded in encode(app, request.prompt, request.suffix.as_deref())? {
        prompts.push(ask(app, encoded, &params, request.max_tokens, request.logprobs, echo)?);
    }
    check_scores(app, &prompts)?;
    Ok(Ready {
        model,
        prompts,
        stop,
        stream: request.stream.unwrap_or(false),
        include_usage: request.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        logprobs: request.logprobs.is_some(),
        ignored,
    })
}

fn ask(
    app: &App,
    Encoded { ids, text }: Encoded,
    sampling: &SamplingParams,
    max_tokens: Option<u32>,
    logprobs: Option<u8>,
    echo: bool,
) -> Result<Ask, ApiError> {
    let tokenizer = &app.card.tokenizer;
    let given = max_tokens.map(|tokens| tokens as usize);
    let max_tokens = output_limit(given, DEFAULT_TOKENS as usize, ids.len(), app.card.context)?;
    let engine = EngineRequest {
        sampling: sampling.clone(),
        // `output_limit` leaves room for one token; none may be asked for.
        max_tokens: if given == Some(0) { 0 } else { max_tokens },
        prefill: Prefill::Exact,
        top_logprobs: logprobs.map(usize::from),
        prompt_logprobs: logprobs.filter(|_| echo).map(usize::from),
        constraint: None,
    };
    let echo = match text {
        _ if !echo => None,
        Some(text) => {
            let put_before = usize::from(!text.starts_with(BOS));
            Some(Echo { text, ids: ids[put_before..].to_vec() })
        }
        None => {
            let text = tokenizer.decode(&ids).map_err(|error| ApiError::invalid(error.to_string()))?;
            Some(Echo { text, ids: ids.clone() })
        }
    };
    Ok(Ask { ids, engine, echo })
}

/// All log-probabilities of prompts lie in memory until they are told.
fn check_scores(app: &App, prompts: &[Ask]) -> Result<(), ApiError> {
    let of = |ask: &Ask| ask.engine.prompt_logprobs.map_or(0, |top| ask.ids.len() * (1 + top));
    let (found, most) = (prompts.iter().map(of).sum::<usize>(), app.options.limits.prompt_logprobs);
    if found > most {
        let message = format!(
            "echo with logprobs asks for {found} log-probabilities of the prompts, alternatives included; this server \
             gives at most {most}: send fewer prompts at once"
        );
        return Err(ApiError::field("logprobs", message));
    }
    Ok(())
}

/// Checks the fields.
fn check(request: &CompletionRequest) -> Result<(), ApiError> {
    let refuse = |field: &str, message: &str| {
        Err(ApiError::field(field, format!("{field} is not supported: {message}")).with_code("unsupported_parameter"))
    };
    if request.n.is_some_and(|n| n != 1) {
        return refuse("n", "only n = 1 is; send several prompts or requests");
    }
    if request.logprobs.is_some_and(|logprobs| logprobs > 20) {
        return Err(ApiError::field("logprobs", "Invalid logprobs value, the valid range of logprobs is [0, 20]"));
    }
    if request.max_tokens.is_some_and(|tokens| tokens as usize > MAX_OUTPUT) {
        let message = format!("Invalid max_tokens value, the valid range of max_tokens is [0, {MAX_OUTPUT}]");
        return Err(ApiError::field("max_tokens", message));
    }
    if request.echo == Some(true) && request.logprobs.is_some() && request.suffix.is_some() {
        return refuse("echo", "together with logprobs and suffix: the model does not see such a prompt as one text");
    }
    Ok(())
}

/// A prompt's ids, and its text where it was given as one.
struct Encoded {
    ids: Vec<u32>,
    text: Option<String>,
}

/// The ids of every prompt.
fn encode(app: &App, prompts: Option<Prompts>, suffix: Option<&str>) -> Result<Vec<Encoded>, ApiError> {
    let tokenizer = &app.card.tokenizer;
    let most = app.options.limits.prompts;
    let prompts = prompts.ok_or_else(|| ApiError::field("prompt", "prompt is missing"))?;
    if let Some(suffix) = suffix {
        let Prompts::Text(before) = prompts else {
            return Err(ApiError::field("suffix", "suffix needs a prompt that is one text"));
        };
        if [FIM_BEGIN, FIM_HOLE, FIM_END].iter().any(|token| tokenizer.added_id(token).is_none()) {
            return Err(ApiError::field(
                "suffix",
                "suffix is not supported: this model has no tokens to fill in the middle",
            ));
        }
        let ids = prompt::fill_in_middle(tokenizer, &before, suffix)?.ids;
        return Ok(vec![Encoded { ids, text: Some(before) }]);
    }
    let text = |text: String| {
        let ids = prompt::completion(tokenizer, &text)?.ids;
        Ok::<_, ApiError>(Encoded { ids, text: Some(text) })
    };
    let ids = |ids: Vec<u32>| {
        if ids.is_empty() {
            return Err(ApiError::field("prompt", "prompt is empty"));
        }
        tokenizer.check_ids(&ids).map_err(|error| ApiError::field("prompt", error.to_string()))?;
        Ok(Encoded { ids, text: None })
    };
    let encoded: Vec<Encoded> = match prompts {
        Prompts::Text(prompt) => vec![text(prompt)?],
        Prompts::Ids(prompt) => vec![ids(prompt)?],
        Prompts::Texts(prompts) if prompts.len() <= most => prompts.into_iter().map(text).collect::<Result<_, _>>()?,
        Prompts::IdLists(prompts) if prompts.len() <= most => prompts.into_iter().map(ids).collect::<Result<_, _>>()?,
        Prompts::Texts(_) | Prompts::IdLists(_) => {
            return Err(ApiError::field("prompt", format!("too many prompts; this server takes at most {most}")));
        }
    };
    if encoded.is_empty() { Err(ApiError::field("prompt", "prompt is an empty list")) } else { Ok(encoded) }
}
