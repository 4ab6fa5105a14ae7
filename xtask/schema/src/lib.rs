//! JSON Schema for every request, answer and drop-in, and for what a fleet answers over HTTP, from the
//! types that read and write them; and the Python client's shapes of answers, from these schemas.

mod python;

use mvm_fleet::body::{ErrorBody, FleetBody, PlanBody, PoolBody};
use mvm_protocol::answer::Answer;
use mvm_protocol::dev::{Control, DevAnswer, DevRequest};
use mvm_protocol::drop_in::{DropIn as _, Integration, Probe};
use mvm_protocol::request::Request;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// The generated files: name in `docs/schema`, content.
///
/// # Errors
///
/// A shape of the protocol crate that this generator does not know how to finish.
pub fn files() -> Result<Vec<(&'static str, String)>, String> {
    Ok(vec![
        ("request.json", pretty(&request::<Request>()?)?),
        ("answer.json", pretty(&answer::<Answer>()?)?),
        ("dev-request.json", pretty(&request::<DevRequest>()?)?),
        ("dev-control.json", pretty(&request::<Control>()?)?),
        ("dev-answer.json", pretty(&answer::<DevAnswer>()?)?),
        ("integration.json", pretty(&integration())?),
        ("probe.json", pretty(&probe()?)?),
        ("fleet.json", pretty(&written::<FleetBody>())?),
        ("fleet-pool.json", pretty(&written::<PoolBody>())?),
        ("fleet-plan.json", pretty(&written::<PlanBody>())?),
        ("fleet-error.json", pretty(&written::<ErrorBody>())?),
    ])
}

/// The Python client's module of shapes, `_shapes.py`.
///
/// # Errors
///
/// A type that the generator cannot say in Python.
pub fn python() -> Result<String, String> {
    let schemas = [
        answer::<Answer>()?.to_value(),
        answer::<DevAnswer>()?.to_value(),
    ];
    python::module(&schemas.each_ref())
}

/// What the agent takes: strict, so that a misspelt field is found before it is sent.
fn request<T: JsonSchema>() -> Result<Schema, String> {
    let mut schema = generate::<T>(SchemaSettings::draft2020_12().for_deserialize());
    for variant in variants(&mut schema)? {
        variant.insert("additionalProperties".into(), Value::Bool(false));
        add_id(variant, "Carried back by every frame of the answer.")?;
    }
    Ok(schema)
}

/// What the agent gives: with room for what newer agents add.
fn answer<T: JsonSchema>() -> Result<Schema, String> {
    let mut schema = written::<T>();
    for variant in variants(&mut schema)? {
        add_id(variant, "The request's `id`, if it had one.")?;
    }
    Ok(schema)
}

/// What is written as it is: with room for fields that later versions add.
fn written<T: JsonSchema>() -> Schema {
    generate::<T>(SchemaSettings::draft2020_12().for_serialize())
}

fn drop_in<T: JsonSchema>() -> Schema {
    generate::<T>(SchemaSettings::draft2020_12().for_deserialize())
}

/// Of each command one of the two ways, which the types' derived schema does not tell.
fn integration() -> Schema {
    let mut schema = drop_in::<Integration>();
    let both = Integration::COMMANDS.iter().map(|(text, argv)| {
        let given = json!({ *text: { "type": "string" }, *argv: { "type": "array" } });
        json!({ "not": { "required": [text, argv], "properties": given } })
    });
    schema.insert("allOf".into(), both.collect());
    schema
}

/// The one field with two spellings, and that one of the two ways has to be there.
fn probe() -> Result<Schema, String> {
    let mut schema = drop_in::<Probe>();
    let command = schema
        .pointer("/properties/command")
        .cloned()
        .ok_or("a probe has no field `command`")?;
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties
        .ok_or("a probe has no fields")?
        .insert("cmd".into(), command);
    schema.insert("required".into(), json!(["name"]));
    let given = |field: &str, kind: &str| json!({ "required": [field], "properties": { field: { "type": kind } } });
    let either = json!([
        given("command", "string"),
        given("cmd", "string"),
        given("command_argv", "array")
    ]);
    schema.insert("oneOf".into(), either);
    Ok(schema)
}

fn generate<T: JsonSchema>(settings: SchemaSettings) -> Schema {
    settings.into_generator().into_root_schema_for::<T>()
}

/// The alternatives of an enum that is told apart by its field `type`.
fn variants(schema: &mut Schema) -> Result<impl Iterator<Item = &mut Map<String, Value>>, String> {
    let variants = schema.get_mut("oneOf").and_then(Value::as_array_mut);
    let variants = variants.ok_or("an enum without `oneOf`")?;
    Ok(variants.iter_mut().filter_map(Value::as_object_mut))
}

/// `id` belongs to the frame and not to the request's or answer's own type.
fn add_id(variant: &mut Map<String, Value>, description: &str) -> Result<(), String> {
    let properties = variant.get_mut("properties").and_then(Value::as_object_mut);
    let properties = properties.ok_or("a variant without fields")?;
    let id = json!({
        "description": description,
        "type": "integer",
        "minimum": 0,
        "maximum": u64::MAX,
    });
    properties.insert("id".into(), id);
    Ok(())
}

fn pretty(schema: &Schema) -> Result<String, String> {
    let text = serde_json::to_string_pretty(schema).map_err(|error| error.to_string())?;
    Ok(text + "\n")
}
