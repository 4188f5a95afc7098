//! `serve` and `ps`: flags, environment and file, a request, and the way down.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};

use crate::support::{cachalot, file, finished, program};

/// A server on a free port, and where it listens.
fn start(command: &mut Command) -> (Child, String, BufReader<std::process::ChildStderr>) {
    let mut child = command.spawn().expect("the program starts");
    let mut err = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(" at http://") {
        line.clear();
        if err.read_line(&mut line).expect("readable") == 0 {
            panic!("the server ends at once: {:?}", child.wait());
        }
    }
    let (_, rest) = line.split_once(" at http://").expect("just seen");
    let address = rest.split_whitespace().next().expect("an address").to_owned();
    (child, address, err)
}

fn ask(address: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("UTF-8");
    reply
}

#[cfg(unix)]
#[test]
fn it_answers_tells_about_itself_and_stops_when_told() {
    let (_folder, config) = file(
        "port = 0\nname = \"from-file\"\nalias = [\"other\"]\ngrace = 5\nbody-timeout = 20\nunread-timeout = 30\nlog-format = \"json\"\n",
    );
    let mut command = program(&["serve", "--config", &config, "--threads", "1"]);
    command.env("CACHALOT_NAME", "from-environment").env("CACHALOT_API_KEY", "the-key");
    let (child, address, mut err) = start(&mut command);

    let body = r#"{"model": "other", "messages": [{"role": "user", "content": "a secret question"}], "max_tokens": 2}"#;
    let refused = ask(&address, "/v1/chat/completions", body);
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");

    let url = format!("http://{address}");
    let run = cachalot(&["ps", "--url", &url, "--api-key", "the-key", "--json"]);
    assert_eq!((run.code, &run.json()["model"]), (Some(0), &"from-environment".into()), "{run:?}");
    let run = cachalot(&["ps", "--url", &url, "--api-key", "the-key"]);
    assert!(run.out.contains("0 running, 0 waiting"), "{run:?}");
    cachalot(&["ps", "--url", &url]).refused(1, &["wants a key"]);

    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    assert!(told.success());
    let mut log = String::new();
    err.read_to_string(&mut log).expect("UTF-8");
    let run = finished(child.wait_with_output().expect("the program ends"));
    assert_eq!(run.code, Some(0), "{log}");
    assert!(!log.contains("secret") && !log.contains("the-key"), "{log}");
    for line in log.lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<serde_json::Value>(line).expect("JSON lines");
    }
    assert!(log.contains("\"status\":401"), "{log}");
    cachalot(&["ps", "--url", &url]).refused(1, &["no server answers"]);
}

#[test]
fn settings_that_cannot_be_meant_are_refused_with_their_place() {
    for (text, part) in [
        ("prot = 1", "no setting \"prot\""),
        ("port = \"many\"", "many"),
        ("open = 1", "open must be true or false"),
        ("body-timeout = 0", "body-timeout"),
        ("unread-timeout = \"soon\"", "unread-timeout"),
        ("port = [", "is not TOML"),
        ("config = \"x\"", "no setting \"config\""),
        ("alias = [[1]]", "alias"),
    ] {
        let (_folder, config) = file(text);
        let run = cachalot(&["serve", "--config", &config]);
        run.refused(2, &[part, &config]);
    }
    cachalot(&["serve", "--config", "/nonexistent"]).refused(2, &["cannot read /nonexistent"]);
    cachalot(&["serve", "--host", "0.0.0.0", "--port", "0"]).refused(1, &["--open"]);
    cachalot(&["serve", "--api-key-file", "/nonexistent"]).refused(1, &["cannot read keys"]);
    let (_folder, empty) = file("\n\n");
    cachalot(&["serve", "--api-key-file", &empty]).refused(1, &["holds no key"]);
    cachalot(&["serve", "--max-body", "1G"]).refused(1, &["--max-body"]);
}
