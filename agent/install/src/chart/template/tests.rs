//! What the template language means, and what it refuses.
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rendered(text: &str) -> Result<String, String> {
    let scope = json!({"Values": {
        "on": true, "off": false, "none": [], "some": ["x", "y"], "map": {"b": 1, "a": "z"},
        "name": "cart", "empty": "", "number": 3, "hostile": "a\"\nb: c",
    }});
    render(text, &scope).map_err(|error| error.to_string())
}

#[test]
fn values_are_put_in() {
    assert_eq!(rendered("n: {{ .Values.number }}\n").unwrap(), "n: 3\n");
    assert_eq!(rendered("{{ .Values.on }}").unwrap(), "true");
    assert_eq!(rendered("{{ .Values.name | quote }}").unwrap(), "\"cart\"");
    assert_eq!(
        rendered(r#"{{ printf "%s:%s!" .Values.name .Values.name | quote }}"#).unwrap(),
        "\"cart:cart!\""
    );
}

#[test]
fn branches_follow_gos_idea_of_truth() {
    for (path, taken) in [
        ("on", "yes"),
        ("off", "no"),
        ("none", "no"),
        ("some", "yes"),
        ("empty", "no"),
        ("name", "yes"),
        ("number", "yes"),
    ] {
        let text = format!("{{{{ if .Values.{path} }}}}yes{{{{ else }}}}no{{{{ end }}}}");
        assert_eq!(rendered(&text).unwrap(), taken, "{path}");
    }
    assert_eq!(
        rendered("{{ if not .Values.off }}a{{ end }}b").unwrap(),
        "ab"
    );
    assert_eq!(
        rendered("{{ if .Values.on }}{{ if .Values.off }}a{{ else }}b{{ end }}c{{ end }}").unwrap(),
        "bc"
    );
}

#[test]
fn dashes_take_white_space_away() {
    assert_eq!(
        rendered("a:\n  {{- if .Values.on }}\n  b: 1\n  {{- end }}\nc: 2\n").unwrap(),
        "a:\n  b: 1\nc: 2\n"
    );
    assert_eq!(rendered("a \n {{- /* why */ -}} \n b").unwrap(), "ab");
}

#[test]
fn lists_and_mappings_keep_their_meaning() {
    let text = rendered(
        "l:\n  {{- toYaml .Values.some | nindent 2 }}\nm:\n  {{- toYaml .Values.map | nindent 2 }}\n",
    )
    .unwrap();
    let value: Value = serde_norway::from_str(&text).unwrap();
    assert_eq!(value, json!({"l": ["x", "y"], "m": {"a": "z", "b": 1}}));
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (text, problem) in [
        ("a\n{{ .Values.nme }}", "line 2: there is no .Values.nme"),
        ("{{ .Values.name }}", "is not quoted"),
        ("{{ printf \"%s\" .Values.name }}", "is not quoted"),
        (
            "{{ printf \"%d\" .Values.number | quote }}",
            "not supported",
        ),
        (
            "{{ printf \"%s\" .Values.name .Values.name | quote }}",
            "not supported",
        ),
        (
            "{{ .Values.number | quote }}",
            "quote does not take a number",
        ),
        ("{{ .Values.map }}", "does not take a mapping"),
        ("{{ .Values.on", "has no '}}'"),
        ("\n\n{{ if .Values.on }}", "line 3: 'if' has no 'end'"),
        ("{{ end }}", "'end' belongs to no 'if'"),
        (
            "{{ if .Values.on }}{{ else }}{{ else }}{{ end }}",
            "'else' belongs to no 'if'",
        ),
        ("{{ else }}", "'else' belongs to no 'if'"),
        (
            "{{ range .Values.some }}{{ end }}",
            "'end' belongs to no 'if'",
        ),
        ("{{ include \"x\" . }}", "not supported"),
        ("{{ .Values.name | upper }}", "not supported"),
        ("{{ if eq .Values.name \"x\" }}{{ end }}", "not supported"),
    ] {
        let error = rendered(text).unwrap_err();
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn deep_nesting_is_refused() {
    let text = |depth| "{{ if .Values.on }}".repeat(depth) + &"{{ end }}".repeat(depth);
    assert!(rendered(&text(MAX_DEPTH)).is_ok());
    assert!(
        rendered(&text(MAX_DEPTH + 1))
            .unwrap_err()
            .contains("nest less")
    );
}

proptest! {
    #[test]
    fn no_value_breaks_out_of_its_place(value in any::<String>()) {
        let scope = json!({"Values": {"a": &value, "l": [&value]}});
        let text = render(
            "x: {{ .Values.a | quote }}\ny: {{ printf \"<%s>\" .Values.a | quote }}\nl:\n  {{- toYaml .Values.l | nindent 2 }}\n",
            &scope,
        ).unwrap();
        let read: Value = serde_norway::from_str(&text).unwrap();
        prop_assert_eq!(read, json!({"x": &value, "y": format!("<{value}>"), "l": [&value]}));
    }

    #[test]
    fn no_template_panics(text in "(\\{\\{|\\}\\}|-| |if|else|end|not|\\.Values|\\.on|\"|\\||quote|printf|%s|x|\n){0,24}") {
        let _ = rendered(&text);
    }
}
