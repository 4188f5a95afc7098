//! Nothing opens an outgoing connection, although the vendor's libraries bring a hub client along.

use std::net::TcpListener;
use std::process::Command;

use cachalot_text::parser::{EngineFinish, OutputParser, ParserOptions};
use cachalot_text::prompt::encode;
use cachalot_text::request::{Api, convert};
use cachalot_text::{Family, engram};

use crate::fixtures::{nano, released};

const CHILD: &str = "CACHALOT_OFFLINE_CHILD";

/// Everything the crate does, with an image that a careless library would fetch.
fn work() {
    let body = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/image.png"}}]}]}"#;
    for tokenizer in [released(Family::V41), &nano()] {
        let request = convert(Api::Chat, Family::V41, body).expect("the request converts");
        let prompt = encode(tokenizer, &request.conversation).expect("the conversation encodes");
        let mut parser = OutputParser::new(tokenizer, ParserOptions::new(&request.conversation, &prompt));
        parser.push_all(&prompt.ids).expect("ids of the vocabulary");
        parser.finish(EngineFinish::Stop);
    }
    engram::token_classes(&nano());
}

#[test]
fn the_work_leaves_no_socket_open() {
    work();
    // In the child process nothing else runs, so any socket would be ours.
    if std::env::var_os(CHILD).is_some() && cfg!(target_os = "linux") {
        let files = std::fs::read_dir("/proc/self/fd").expect("the list of open files");
        let sockets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        let sockets: Vec<_> = sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect();
        assert!(sockets.is_empty(), "{sockets:?}");
    }
}

#[test]
fn nobody_calls_the_hub_or_a_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a local port");
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "offline::the_work_leaves_no_socket_open"]).env(CHILD, "1");
    for name in ["HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        child.env(name, &address);
    }
    let output = child.output().expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    let caller = listener.accept();
    assert!(caller.is_err(), "a connection from {caller:?}");
}

#[test]
fn the_hub_client_is_not_even_linked() {
    // The name is put together at run time, or this file would hold it itself.
    let host = ["huggingface", "co"].join(".");
    let program = std::fs::read(std::env::current_exe().expect("this program")).expect("its bytes");
    let found = program.windows(host.len()).any(|bytes| bytes == host.as_bytes());
    assert!(!found, "the program holds the hub's address: some code path can reach the hub client");
}
