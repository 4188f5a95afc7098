//! Errors, in the form of each API (protocol.md 5.8).
//!
//! Owns statuses, types, codes and bodies. Every text is meant for the client: it names the field and what to do.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use cachalot_engine::sampling::SamplingError;
use cachalot_engine::scheduler::{JobError, SubmitError};
use cachalot_engine::session::GenerateError;
use cachalot_text::prompt::PromptError;
use cachalot_text::request::RequestError;
use cachalot_text::sampling::ContextOverflow;
use serde::Serialize;
use utoipa::ToSchema;

/// Whose form an error takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Chat, Completions, Responses and everything else.
    OpenAi,
    /// Messages.
    Anthropic,
}

/// What went wrong, as statuses tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 400.
    Invalid,
    /// 401.
    Authentication,
    /// 403.
    Permission,
    /// 404.
    NotFound,
    /// 405.
    Method,
    /// 408.
    Slow,
    /// 413.
    TooLarge,
    /// 429.
    RateLimit,
    /// 431.
    HeadTooLarge,
    /// 500.
    Internal,
    /// 503; 529 for Anthropic's clients.
    Overloaded,
    /// 504.
    TimedOut,
}

/// An error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    kind: Kind,
    /// What `code` says instead of the usual.
    code: Option<&'static str>,
    /// The field that is at fault.
    param: Option<String>,
    message: String,
}

/// The error body of OpenAI's APIs.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    error: ErrorDetail,
}

/// See [`ErrorBody`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: &'static str,
}

/// The error body of Anthropic's API.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessagesErrorBody {
    r#type: &'static str,
    error: MessagesErrorDetail,
}

/// See [`MessagesErrorBody`].
#[derive(Debug, Serialize, ToSchema)]
pub struct MessagesErrorDetail {
    r#type: &'static str,
    message: String,
}

impl ApiError {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, code: None, param: None, message: message.into() }
    }

    /// A request that cannot be meant.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// A field whose value cannot be carried out.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(field.into()), ..Self::invalid(message) }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// With a `code` for programs.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The `code` of the OpenAI form.
    pub fn code(&self) -> &'static str {
        self.code.unwrap_or_else(|| self.openai_type())
    }

    /// The status.
    pub fn status(&self, style: Style) -> StatusCode {
        match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Authentication => StatusCode::UNAUTHORIZED,
            Kind::Permission => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Slow => StatusCode::REQUEST_TIMEOUT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Kind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Overloaded => match style {
                Style::OpenAi => StatusCode::SERVICE_UNAVAILABLE,
                Style::Anthropic => StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            },
            Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.kind {
            Kind::Invalid | Kind::Method | Kind::Slow | Kind::TooLarge | Kind::HeadTooLarge => "invalid_request_error",
            Kind::Authentication => "authentication_error",
            Kind::Permission => "permission_error",
            Kind::NotFound => "not_found_error",
            Kind::RateLimit => "rate_limit_error",
            Kind::Internal => "internal_error",
            Kind::Overloaded | Kind::TimedOut => "server_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.kind {
            Kind::Invalid | Kind::Method | Kind::Slow => "invalid_request_error",
            Kind::Authentication => "authentication_error",
            Kind::Permission => "permission_error",
            Kind::NotFound => "not_found_error",
            Kind::TooLarge | Kind::HeadTooLarge => "request_too_large",
            Kind::RateLimit => "rate_limit_error",
            Kind::Internal => "api_error",
            Kind::Overloaded => "overloaded_error",
            Kind::TimedOut => "timeout_error",
        }
    }

    /// The body of OpenAI's APIs.
    pub fn openai(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                r#type: self.openai_type(),
                param: self.param.clone(),
                code: self.code(),
            },
        }
    }

    /// The body of Anthropic's API.
    pub fn anthropic(&self) -> MessagesErrorBody {
        let error = MessagesErrorDetail { r#type: self.anthropic_type(), message: self.message.clone() };
        MessagesErrorBody { r#type: "error", error }
    }

    /// The body.
    pub fn body(&self, style: Style) -> Vec<u8> {
        let body = match style {
            Style::OpenAi => serde_json::to_vec(&self.openai()),
            Style::Anthropic => serde_json::to_vec(&self.anthropic()),
        };
        body.unwrap_or_default()
    }

    /// The whole response.
    pub fn response(&self, style: Style) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(style)));
        *response.status_mut() = self.status(style);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.kind {
            Kind::Authentication => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Kind::RateLimit | Kind::Overloaded => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::Internal(_) => Self::new(Kind::Internal, message),
            RequestError::Field { field, .. } => Self::field(field, message),
            RequestError::Unsupported { field, .. } => Self::field(field, message).with_code("unsupported_parameter"),
            _ => Self::invalid(message),
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        match &error {
            PromptError::VendorTemplate(_) => Self::new(Kind::Internal, error.to_string()),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<ContextOverflow> for ApiError {
    fn from(error: ContextOverflow) -> Self {
        Self::invalid(error.to_string()).with_code("context_length_exceeded")
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        let message = error.to_string();
        match error {
            SamplingError::OutOfRange { name, .. } => Self::field(name, message),
            _ => Self::invalid(message),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Sampling(error) => error.into(),
            GenerateError::EmptyPrompt => Self::invalid(message),
            GenerateError::PromptTooLong { .. } => Self::invalid(message).with_code("context_length_exceeded"),
            _ => Self::new(Kind::Internal, message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => Self::new(Kind::RateLimit, message).with_code("queue_full"),
            SubmitError::Stopping => Self::new(Kind::Overloaded, message),
            SubmitError::Generate(error) => error.into(),
        }
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        let message = error.to_string();
        match error {
            JobError::Generate(error) => error.into(),
            JobError::TimedOut => Self::new(Kind::TimedOut, message),
            JobError::Stopping => Self::new(Kind::Overloaded, message),
        }
    }
}
