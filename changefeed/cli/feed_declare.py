"""changefeed feed declare FEED FILE.toml: which resources and fields a feed carries."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from changefeed.change import FIELD, WORD, Resource, check_feed_name
from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.output import Output
from changefeed.config import hint, read_toml
from changefeed.errors import BadConfig
from changefeed.log.urls import open_log


async def run(values: Values, output: Output) -> int:
    check_feed_name(values.feed)
    resources = read_resources(read_toml(values.file), values.file)
    store = open_log(values.log, values.settings)
    try:
        log = await store.open(values.feed)
        try:
            stored = await log.set_settings(replace(await log.settings(), resources=resources))
        finally:
            await log.aclose()
    finally:
        await store.aclose()
    names = ", ".join(resource.name for resource in resources) or "anything"
    await output.line({"feed": values.feed, **asdict(stored)}, f"{values.feed} carries {names}")
    return 0


def read_resources(content: dict[str, Any], path: str) -> tuple[Resource, ...]:
    """The resources of a declaration; raises BadConfig for what cannot be one.

    [vm]
    fields = ["state", "ram"]      # left out: any field
    list = "https://vmapi/vms"     # a hint where to list the objects
    """
    resources = []
    for name, table in content.items():
        where = f"{path}: [{name}]"
        if not WORD.match(name):
            raise BadConfig(f"{where}: a resource is a word of 1 to 64 letters, digits or _.:-")
        if not isinstance(table, dict):
            raise BadConfig(f'{where}: write [{name}] with fields = ["…"] below it, not {name} = {table!r}')
        for key in table:
            if key not in ("fields", "list"):
                raise BadConfig(f"{where}: nothing here reads {key!r}{hint(key, ('fields', 'list'))}")
        fields = table.get("fields")
        if fields is not None and not (
            isinstance(fields, list) and all(isinstance(field, str) and FIELD.match(field) for field in fields)
        ):
            raise BadConfig(f"{where}: fields is a list of names without spaces or commas")
        if not isinstance(table.get("list", ""), str):
            raise BadConfig(f"{where}: list is a text")
        resources.append(Resource(name, None if fields is None else tuple(fields), table.get("list")))
    return tuple(resources)


COMMAND = Command(
    name="feed declare",
    run=run,
    positionals=(
        Positional("feed", "the feed; its log is created if it is missing"),
        Positional("file", 'a TOML file with a table per resource: [vm] fields = ["state"] list = "https://…"'),
    ),
    options=(LOG,),
    about="From then on other resources and fields are refused in publishes and filters. Kept in the log: all "
    "instances notice within seconds. An empty file allows everything again.",
)
