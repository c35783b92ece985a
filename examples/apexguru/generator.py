"""Seeded Apex classes with and without known performance anti-patterns, and what a reviewer should answer.

The example model is trained and measured on nothing else. Every line is written together with the *facts* it holds
(a query, a DML statement, ...); a finding follows from a fact and the loops open around the line, so a label cannot
disagree with its code. Only the standard library is used: tests and demos of a default install import this file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HELDOUT_SEEDS = range(10_000)  # for measuring; never trained on
TRAINING_SEEDS = range(1_000_000, 1_000_000_000)

# Findings of one line are answered in this order.
RULES = (
    "SoqlInLoop",
    "DmlInLoop",
    "UnboundedQuery",
    "HardcodedId",
    "StringConcatInLoop",
    "NestedLoop",
    "TriggerNotBulkified",
    "DebugInLoop",
)

# A fact a line states, and the rule it breaks: anywhere, or only when a loop is open around it.
ALWAYS = {
    "unbounded": "UnboundedQuery",
    "record id": "HardcodedId",
    "one record of the batch": "TriggerNotBulkified",
}
IN_LOOP = {
    "query": "SoqlInLoop",
    "dml": "DmlInLoop",
    "append to string": "StringConcatInLoop",
    "loop over collection": "NestedLoop",
    "debug": "DebugInLoop",
}

MIN_LINES, MAX_LINES, MAX_FINDINGS = 8, 42, 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One anti-pattern: the rule it breaks and the line, counted from 1, where it does."""

    rule: str
    line: int


@dataclass(frozen=True, slots=True)
class LineNote:
    """What holds on one line: rules it breaks, loops open around it, kind of the innermost open block.

    A line that closes a block already counts as outside of it. Training supervises these besides the answer.
    """

    rules: tuple[str, ...]
    loop_depth: int
    block: str


@dataclass(frozen=True, slots=True)
class Example:
    """One generated class or trigger and its review."""

    seed: int
    source: str
    findings: tuple[Finding, ...]
    notes: tuple[LineNote, ...]

    @property
    def numbered(self) -> str:
        """The source as the model reads it."""
        return number_lines(self.source)

    @property
    def answer(self) -> str:
        """The exact text the model should answer with."""
        return format_answer(self.findings)


def number_lines(source: str) -> str:
    """*source* with each line's number, counted from 1, in a comment at its end: still Apex.

    At the end, not in front: a reader from left to right knows by then what is wrong with the line, so naming it is
    copying the token in hand. A number in front has to be fetched back, and was often off by one.
    """
    return "\n".join(
        f"{line} //{number}" if line else f"//{number}" for number, line in enumerate(source.splitlines(), 1)
    )


def messages(example: Example) -> list[dict[str, str]]:
    """The chat messages to send for a review of *example*."""
    return [{"role": "user", "content": example.numbered}]


def format_answer(findings: Sequence[Finding]) -> str:
    """*findings* as compact JSON, in the order given."""
    return json.dumps([{"rule": f.rule, "line": f.line} for f in findings], separators=(",", ":"))


def parse_answer(text: str) -> tuple[Finding, ...]:
    """The findings in a model's answer. Raises ValueError naming what is wrong with it."""
    try:
        items = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"the answer is not JSON: {exc}") from exc
    if not isinstance(items, list):
        raise ValueError(f"the answer is a {type(items).__name__}, not a list of findings")
    findings = []
    for position, item in enumerate(items):
        if not isinstance(item, dict) or set(item) != {"rule", "line"}:
            raise ValueError(f"finding {position} is not an object with exactly 'rule' and 'line': {item!r}")
        rule, line = item["rule"], item["line"]
        if rule not in RULES:
            raise ValueError(f"finding {position} names the unknown rule {rule!r}; rules are {', '.join(RULES)}")
        if type(line) is not int or line < 1:
            raise ValueError(f"finding {position} has the line {line!r}, not a number from 1")
        findings.append(Finding(rule, line))
    return tuple(findings)


# ---------------------------------------------------------------------------------------------------------------------
# Vocabulary


@dataclass(frozen=True, slots=True)
class SObject:
    """An object type and enough of its schema to write plausible code about it."""

    name: str
    singular: str
    plural: str
    texts: tuple[str, ...]  # text and picklist fields
    numbers: tuple[str, ...]
    parents: tuple[str, ...]  # lookup fields, indexed
    children: tuple[str, ...]  # child relationships
    key_prefix: str  # first three characters of its record ids


SOBJECTS = (
    SObject(
        "Account",
        "account",
        "accounts",
        ("Name", "Industry", "Rating", "BillingCity", "Phone", "Description"),
        ("AnnualRevenue", "NumberOfEmployees"),
        ("OwnerId", "ParentId"),
        ("Contacts", "Opportunities", "Cases"),
        "001",
    ),
    SObject(
        "Contact",
        "contact",
        "contacts",
        ("LastName", "Email", "Phone", "Title", "MailingCity", "Description"),
        ("Score__c", "Visits__c"),
        ("AccountId", "OwnerId"),
        ("Cases", "Opportunities"),
        "003",
    ),
    SObject(
        "Opportunity",
        "opp",
        "opps",
        ("Name", "StageName", "NextStep", "Type", "Description"),
        ("Amount", "Probability"),
        ("AccountId", "OwnerId", "CampaignId"),
        ("OpportunityLineItems", "Tasks"),
        "006",
    ),
    SObject(
        "Case",
        "record",
        "records",
        ("Subject", "Status", "Priority", "Origin", "Description"),
        ("Age__c", "Reopened__c"),
        ("AccountId", "ContactId", "OwnerId"),
        ("Tasks", "CaseComments"),
        "500",
    ),
    SObject(
        "Lead",
        "lead",
        "leads",
        ("LastName", "Company", "Status", "Email", "Rating"),
        ("AnnualRevenue", "Score__c"),
        ("OwnerId", "Campaign__c"),
        ("Tasks", "Events"),
        "00Q",
    ),
    SObject(
        "Task",
        "task",
        "tasks",
        ("Subject", "Status", "Priority", "Description"),
        ("Hours__c", "Effort__c"),
        ("WhatId", "WhoId", "OwnerId"),
        ("Attachments", "Notes"),
        "00T",
    ),
    SObject(
        "Order",
        "order",
        "orders",
        ("Name", "Status", "Type", "BillingCity", "Description"),
        ("TotalAmount", "Discount__c"),
        ("AccountId", "ContractId"),
        ("OrderItems", "Shipments__r"),
        "801",
    ),
    SObject(
        "Asset",
        "asset",
        "assets",
        ("Name", "Status", "SerialNumber", "Description"),
        ("Price", "Quantity"),
        ("AccountId", "ContactId", "Product2Id"),
        ("Cases", "Readings__r"),
        "02i",
    ),
    SObject(
        "Invoice__c",
        "invoice",
        "invoices",
        ("Name", "Status__c", "Currency__c", "Notes__c"),
        ("Total__c", "Tax__c", "Balance__c"),
        ("Account__c", "Order__c"),
        ("Lines__r", "Payments__r"),
        "a01",
    ),
    SObject(
        "Project__c",
        "project",
        "projects",
        ("Name", "Phase__c", "Region__c", "Summary__c"),
        ("Budget__c", "Spent__c"),
        ("Account__c", "OwnerId"),
        ("Milestones__r", "Timesheets__r"),
        "a02",
    ),
    SObject(
        "Shipment__c",
        "shipment",
        "shipments",
        ("Name", "Carrier__c", "Status__c", "Tracking__c"),
        ("Weight__c", "Cost__c"),
        ("Order__c", "Account__c"),
        ("Parcels__r", "Events__r"),
        "a03",
    ),
    SObject(
        "Subscription__c",
        "sub",
        "subs",
        ("Name", "Plan__c", "Status__c", "Term__c"),
        ("Price__c", "Seats__c"),
        ("Account__c", "Contact__c"),
        ("Renewals__r", "Invoices__r"),
        "a04",
    ),
    SObject(
        "Timesheet__c",
        "sheet",
        "sheets",
        ("Name", "Status__c", "Week__c", "Comment__c"),
        ("Hours__c", "Rate__c"),
        ("Project__c", "OwnerId"),
        ("Entries__r", "Approvals__r"),
        "a05",
    ),
    SObject(
        "Vehicle__c",
        "vehicle",
        "vehicles",
        ("Name", "Model__c", "Status__c", "Color__c"),
        ("Mileage__c", "Price__c"),
        ("Account__c", "Contact__c"),
        ("Services__r", "Trips__r"),
        "a06",
    ),
)

VALUES = ("Open", "Closed", "New", "Active", "Pending", "High", "Low", "Hot", "Draft", "Sent", "Approved", "Done")
WORDS = ("Sync", "Billing", "Quality", "Routing", "Import", "Renewal", "Territory", "Pricing", "Contract", "Service")
ROLES = ("Service", "Handler", "Helper", "Processor", "Batch", "Controller", "Calculator", "Selector", "Manager", "Job")
VERBS = ("update", "sync", "process", "build", "assign", "refresh", "close", "merge", "notify", "recalculate", "check")
ASPECTS = ("Status", "Totals", "Owners", "Summary", "Records", "Ratings", "Links", "Dates", "Report", "Scores")
COMMENTS = (
    "// keep the order of the records",
    "// one query before the loop",
    "// insert happens after the loop",
    "// collect first, write once",
    "// ask the admin about this field",
    "// see the wiki for the stages",
    "// avoid SOQL in the for loop",
    "// skip records that are done",
    "// nothing to do for the others",
    "// ids come from the caller",
    "// governor limits apply here",
)
METHOD_MODIFIERS = ("public static", "public", "private static", "private", "global static", "public virtual")
CLASS_MODIFIERS = (
    "public with sharing class",
    "public without sharing class",
    "public class",
    "global with sharing class",
    "public inherited sharing class",
)
TRIGGER_EVENTS = (
    "before insert",
    "before update",
    "after insert",
    "after update",
    "before insert, before update",
    "after insert, after update",
    "before delete",
    "after insert, after delete",
)
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


# ---------------------------------------------------------------------------------------------------------------------
# Writing code


@dataclass(frozen=True, slots=True)
class _Listed:
    """A variable in scope that holds many records."""

    name: str
    of: SObject


class _Page:
    """The lines written so far and the blocks open around the next one."""

    def __init__(self, indent: str) -> None:
        self.lines: list[str] = []
        self.notes: list[LineNote] = []
        self._indent = indent
        self._blocks: list[str] = []

    @property
    def depth(self) -> int:
        """Loops open around the next line."""
        return self._blocks.count("loop")

    def put(self, text: str, *facts: str) -> None:
        """Write one line that states *facts*."""
        broken = [ALWAYS[fact] for fact in facts if fact in ALWAYS]
        if self.depth:
            broken += [IN_LOOP[fact] for fact in facts if fact in IN_LOOP]
        rules = tuple(sorted(set(broken), key=RULES.index))
        self.lines.append(self._indent * len(self._blocks) + text if text else "")
        self.notes.append(LineNote(rules, self.depth, self._blocks[-1] if self._blocks else "file"))

    def open(self, text: str, block: str, *facts: str) -> None:
        """Write the header of a block and enter it; the header itself still counts as outside."""
        self.put(f"{text} {{", *facts)
        self._blocks.append(block)

    def close(self, rest: str = "") -> None:
        """Leave the innermost block."""
        self._blocks.pop()
        self.put("}" + rest)

    def turn(self, text: str) -> None:
        """Close a branch and open the next one of the same kind: else, catch."""
        block = self._blocks.pop()
        self.put(f"}} {text} {{")
        self._blocks.append(block)


class _Author:
    """Writes one class or trigger; *badness* is the chance that a spot gets the anti-pattern, not its look-alike."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.badness = rng.choice((0.0, 0.15, 0.25, 0.35, 0.45, 0.55))
        self.page = _Page(rng.choice(("    ", "    ", "    ", "  ")))
        self.taken: set[str] = set()
        self.lists: list[_Listed] = []
        self.strings: list[str] = []
        self.in_trigger = False

    # Choices

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def bad(self) -> bool:
        return self.chance(self.badness)

    def name(self, *candidates: str) -> str:
        """An identifier that this method does not use yet."""
        free = [c for c in candidates if c not in self.taken]
        base = self.rng.choice(free or candidates)
        chosen, number = base, 2
        while chosen in self.taken:
            chosen, number = f"{base}{number}", number + 1
        self.taken.add(chosen)
        return chosen

    def list_name(self, of: SObject) -> str:
        plural = of.plural
        title = plural.capitalize()
        return self.name(plural, plural, f"all{title}", f"related{title}", f"open{title}", f"{plural}ToCheck")

    def item_name(self, of: SObject) -> str:
        return self.name(of.singular, of.singular, of.singular[0], f"current{of.singular.capitalize()}", "item", "row")

    def literal(self) -> str:
        """A string that is no record id, though some look technical."""
        if self.chance(0.8):
            return f"'{self.rng.choice(VALUES)}'"
        if self.chance(0.3):
            return f"'0{self.rng.randint(10**8, 10**10)}'"
        code = "".join(self.rng.choice("ABCDEFGHKLMNPRSTUVWX") for _ in range(self.rng.randint(3, 6)))
        return f"'{code}-{self.rng.randint(1, 9999)}'"

    def record_id(self, of: SObject) -> str:
        """A literal that looks like a record id, 15 or 18 characters."""
        length = self.rng.choice((15, 18))
        pod = self.rng.choice(("5g", "5e", "1a", "8d", "3x"))
        body = of.key_prefix + pod + "00000"
        return "'" + body + "".join(self.rng.choice(BASE62) for _ in range(length - len(body))) + "'"

    # Queries

    def query(self, of: SObject, item: str | None) -> tuple[str, tuple[str, ...]]:
        """A SOQL query over *of* and its facts; *item* is a record in scope to filter by."""
        rng = self.rng
        fields = ["Id", *rng.sample(of.texts + of.numbers, rng.randint(1, 3))]
        if self.chance(0.4):
            fields.append(rng.choice(of.parents))
        text = f"SELECT {', '.join(fields)} FROM {of.name}"
        weak = rng.choice(
            (
                f"{rng.choice(of.texts)} != null",
                f"{rng.choice(of.texts)} != {self.literal()}",
                f"{rng.choice(of.texts)} LIKE '%{rng.choice(VALUES)}'",
                f"{rng.choice(of.parents)} NOT IN :{self.ids_name()}",
            )
        )
        strong = rng.choice(
            (
                f"{rng.choice(of.parents)} = :{item}.Id" if item else f"Id IN :{self.ids_name()}",
                f"{rng.choice(of.parents)} IN :{self.ids_name()}",
                f"Id = :{item}.{rng.choice(('Related__c', 'Source__c'))}" if item else "Id = :recordId",
                f"{rng.choice(of.texts)} = {self.literal()}",
                f"{rng.choice(of.texts)} LIKE '{rng.choice(VALUES)}%'",
                f"CreatedDate = LAST_N_DAYS:{rng.choice((7, 30, 90))}",
                f"{rng.choice(of.numbers)} > {rng.randint(1, 500)}",
            )
        )
        order = f" ORDER BY {rng.choice((*of.texts, 'CreatedDate'))}{rng.choice(('', ' DESC'))}"
        ordered = order if self.chance(0.2) else ""
        limit = f" LIMIT {rng.choice((1, 10, 50, 100, 200, 500, 1000))}"
        if self.chance(self.badness * 0.7):
            where = f" WHERE {weak}" if self.chance(0.5) else ""
            return f"[{text}{where}{ordered}]", ("query", "unbounded")
        match rng.randrange(5):
            case 0:
                where, limit = f" WHERE {weak}" if self.chance(0.5) else "", limit
            case 1:
                where, limit = f" WHERE {strong}", limit
            case 2:
                where, limit = f" WHERE {weak} AND {strong}" if self.chance(0.5) else f" WHERE {strong} AND {weak}", ""
            case _:
                where, limit = f" WHERE {strong}", ""
        return f"[{text}{where}{ordered}{limit}]", ("query",)

    def ids_name(self) -> str:
        return self.rng.choice(("ids", "recordIds", "accountIds", "ownerIds", "parentIds", "keys"))

    # Statements, in any place

    def comment(self) -> None:
        """A remark, at times code that is commented out: neither breaks a rule."""
        rng = self.rng
        of = rng.choice(SOBJECTS)
        disabled = (
            f"// System.debug({of.plural});",
            f"// update {of.plural};",
            f"// insert {of.singular};",
            f"// {of.name} old = [SELECT Id FROM {of.name}];",
            f"// for ({of.name} each : {of.plural}) {{",
        )
        self.page.put(rng.choice(COMMENTS) if self.chance(0.6) else rng.choice(disabled))

    def debug(self, subject: str) -> None:
        rng = self.rng
        level = rng.choice(("", "", "LoggingLevel.ERROR, ", "LoggingLevel.INFO, "))
        message = rng.choice(
            (subject, f"'{rng.choice(VALUES)}: ' + {subject}", f"'{rng.choice(ASPECTS)} ' + {subject}")
        )
        self.page.put(f"System.debug({level}{message});", "debug")

    def dml(self, target: str) -> None:
        verb = self.rng.choice(("insert", "update", "update", "upsert", "delete"))
        if self.chance(0.3):
            text = f"Database.{verb}({target}{self.rng.choice(('', ', false'))});"
        else:
            text = f"{verb} {target};"
        self.page.put(text, "dml")

    def write(self, target: str) -> None:
        """DML on many records outside of any loop, at times guarded by a condition or a try block."""
        shape = self.rng.random()
        if shape < 0.55:
            self.dml(target)
        elif shape < 0.8:
            self.page.open(f"if (!{target}.isEmpty())", "if")
            self.dml(target)
            self.page.close()
        else:
            self.page.open("try", "try")
            self.dml(target)
            self.page.turn("catch (DmlException e)")
            if self.chance(0.5):
                self.debug("e.getMessage()")
            else:
                self.page.put("errors.add(e.getMessage());")
            self.page.close()

    def id_variable(self) -> None:
        """An id: hard-coded, or got hold of properly."""
        rng = self.rng
        of = rng.choice(SOBJECTS)
        name = self.name("recordTypeId", "defaultId", "queueId", "adminId", "fallbackId", "templateId")
        if self.bad():
            self.page.put(f"{rng.choice(('Id', 'Id', 'String'))} {name} = {self.record_id(of)};", "record id")
            return
        self.page.put(
            rng.choice(
                (
                    f"Id {name} = UserInfo.getUserId();",
                    f"Id {name} = Settings__c.getInstance().{rng.choice(('Default__c', 'Queue__c'))};",
                    f"String {name} = {self.literal()};",
                    f"Id {name} = ids.isEmpty() ? null : ids[0];",
                    f"Id {name} = (Id) params.get({self.literal()});",
                )
            )
        )

    def condition(self, item: str, of: SObject) -> tuple[str, tuple[str, ...]]:
        """A test of the record *item*, and its facts."""
        rng = self.rng
        if self.chance(self.badness * 0.2):
            return f"{item}.{rng.choice(of.parents)} == {self.record_id(rng.choice(SOBJECTS))}", ("record id",)
        text = rng.choice(
            (
                f"{item}.{rng.choice(of.texts)} == {self.literal()}",
                f"{item}.{rng.choice(of.texts)} != null",
                f"{item}.{rng.choice(of.numbers)} > {rng.randint(1, 1000)}",
                f"{item}.{rng.choice(of.parents)} == null",
                f"String.isBlank({item}.{rng.choice(of.texts)})",
                f"seen.contains({item}.Id)",
            )
        )
        return text, ()

    # Statements about one record

    def set_field(self, item: str, of: SObject) -> None:
        rng = self.rng
        if self.bad() and self.chance(0.25):
            lookup = rng.choice((*of.parents, "RecordTypeId"))
            self.page.put(f"{item}.{lookup} = {self.record_id(rng.choice(SOBJECTS))};", "record id")
            return
        text, number = rng.choice(of.texts), rng.choice(of.numbers)
        self.page.put(
            rng.choice(
                (
                    f"{item}.{text} = {self.literal()};",
                    f"{item}.{text} = {item}.{rng.choice(of.texts)} + ' ' + {self.literal()};",
                    f"{item}.{number} = {item}.{rng.choice(of.numbers)} * {rng.randint(2, 12)};",
                    f"{item}.{number} += {rng.randint(1, 100)};",
                    f"{item}.{rng.choice(of.parents)} = recordId;",
                    f"{item}.{rng.choice(of.parents)} = byId.get({item}.Id).{rng.choice(of.parents)};",
                )
            )
        )

    def append(self, item: str, of: SObject) -> None:
        """Gather text: onto a string that outlives the loop, or one of the harmless ways."""
        rng = self.rng
        part = f"{item}.{rng.choice(of.texts)}"
        if self.strings and (self.bad() or self.bad()):
            name = rng.choice(self.strings)
            right = rng.choice((part, f"{part} + ', '", f"', ' + {part}", f"'{rng.choice(VALUES)}: ' + {part}"))
            tail = f"{name} += {right};" if self.chance(0.7) else f"{name} = {name} + {right};"
            self.page.put(tail, "append to string")
            return
        number = f"{item}.{rng.choice(of.numbers)}"
        self.page.put(
            rng.choice(
                (
                    f"parts.add({part});",
                    f"parts.add({part} + ', ' + {number});",
                    f"String {self.name('key', 'label', 'line')} = {part} + '-' + {number};",
                    f"total += {number};",
                    f"count = count + {rng.randint(1, 3)};",
                    "count++;",
                    f"total = total + {number} * {rng.randint(2, 9)};",
                )
            )
        )

    def keep(self, item: str, of: SObject) -> None:
        rng = self.rng
        self.page.put(
            rng.choice(
                (
                    f"changed.add({item});",
                    f"{self.ids_name()}.add({item}.Id);",
                    f"byId.put({item}.Id, {item});",
                    f"{rng.choice(WORDS)}{rng.choice(ROLES)}.{rng.choice(VERBS)}({item});",
                    f"changed.add(new {of.name}(Id = {item}.Id, {rng.choice(of.texts)} = {self.literal()}));",
                    f"{item}.addError({self.literal()});",
                )
            )
        )

    def fetch(self, item: str) -> None:
        """Get related records: by a query, or out of a map filled earlier."""
        of = self.rng.choice(SOBJECTS)
        if self.bad():
            text, facts = self.query(of, item)
            self.page.put(f"List<{of.name}> {self.list_name(of)} = {text};", *facts)
        else:
            name = self.list_name(of)
            self.page.put(f"List<{of.name}> {name} = {of.plural}By{self.rng.choice(('Id', 'Parent'))}.get({item}.Id);")

    def branch(self, item: str, of: SObject, level: int) -> None:
        condition, facts = self.condition(item, of)
        self.page.open(f"if ({condition})", "if", *facts)
        if self.page.depth and self.chance(0.12):
            self.page.put(self.rng.choice(("continue;", "continue;", "break;")))
            self.page.close()
            return
        self.about(item, of, level + 1, self.rng.randint(1, 2))
        if self.chance(0.25):
            self.page.turn("else")
            self.about(item, of, level + 1, 1)
        self.page.close()

    def inner_loop(self, item: str, level: int) -> None:
        """A loop inside a loop: over all of a collection, or over what belongs to the record alone."""
        rng = self.rng
        saved = set(self.taken)
        of = rng.choice(SOBJECTS)
        if self.bad():
            each, many = self.item_name(of), self.rng.choice([known.name for known in self.lists] or [of.plural])
            shape = rng.random()
            if shape < 0.6:
                self.page.open(f"for ({of.name} {each} : {many})", "loop", "loop over collection")
            elif shape < 0.8:
                index = self.name("j", "k", "n")
                header = f"for (Integer {index} = 0; {index} < {many}.size(); {index}++)"
                self.page.open(header, "loop", "loop over collection")
                each = f"{many}[{index}]"
            else:
                text, facts = self.query(of, item)
                self.page.open(f"for ({of.name} {each} : {text})", "loop", "loop over collection", *facts)
        else:
            each = self.item_name(of)
            shape = rng.random()
            if shape < 0.4:
                self.page.open(f"for ({of.name} {each} : {of.plural}ByParent.get({item}.Id))", "loop")
            elif shape < 0.8:
                self.page.open(f"for ({of.name} {each} : {item}.{rng.choice(of.children)})", "loop")
            else:
                index = self.name("j", "k", "n")
                self.page.open(f"for (Integer {index} = 0; {index} < {rng.randint(2, 9)}; {index}++)", "loop")
                each = item
        self.about(each, of, level + 1, rng.randint(1, 2))
        self.page.close()
        self.taken = saved

    def about(self, item: str, of: SObject, level: int, count: int) -> None:
        """*count* statements about the record *item*, nested at most three deep."""
        rng = self.rng
        for _ in range(count):
            kinds: list[Callable[[], None]] = [
                lambda: self.set_field(item, of),
                lambda: self.append(item, of),
                lambda: self.keep(item, of),
                lambda: self.fetch(item),
                lambda: self.dml(item) if self.bad() else self.set_field(item, of),
                lambda: self.debug(f"{item}.{rng.choice(of.texts)}") if self.bad() else self.keep(item, of),
            ]
            weights = [2.0, 3.0, 2.0, 2.0, 2.5, 2.5]
            if level < 3:
                kinds += [lambda: self.branch(item, of, level)]
                weights += [3.0]
            if level < 2:
                kinds += [lambda: self.inner_loop(item, level)]
                weights += [3.0]
            if self.chance(0.06):
                self.comment()
            rng.choices(kinds, weights)[0]()

    # Statements of a method's body

    def load(self) -> None:
        """Query many records into a variable, outside of any loop."""
        of = self.rng.choice(SOBJECTS)
        text, facts = self.query(of, None)
        if self.chance(0.25):
            name = self.name("byId", f"{of.plural}ById", f"{of.plural}Map")
            self.page.put(f"Map<Id, {of.name}> {name} = new Map<Id, {of.name}>({text});", *facts)
        else:
            name = self.list_name(of)
            self.page.put(f"List<{of.name}> {name} = {text};", *facts)
            self.lists.append(_Listed(name, of))

    def loop(self) -> None:
        """A loop that is not inside another one; what its facts mean depends on where it stands."""
        rng = self.rng
        saved = set(self.taken)
        known = rng.choice(self.lists) if self.lists and self.chance(0.8) else None
        of = known.of if known else rng.choice(SOBJECTS)
        many = known.name if known else of.plural
        each = self.item_name(of)
        over = "loop over collection"
        shape = rng.random()
        if shape < 0.08:
            self.page.put(f"for ({of.name} {each} : {many}) {rng.choice(('ids', 'parentIds'))}.add({each}.Id);", over)
            self.taken = saved
            return
        if shape < 0.62:
            self.page.open(f"for ({of.name} {each} : {many})", "loop", over)
        elif shape < 0.74:
            index = self.name("i", "i", "index", "pos")
            self.page.open(f"for (Integer {index} = 0; {index} < {many}.size(); {index}++)", "loop", over)
            if self.chance(0.6):
                self.page.put(f"{of.name} {each} = {many}[{index}];")
            else:
                each = f"{many}[{index}]"
        elif shape < 0.84:
            self.page.put(f"Iterator<{of.name}> cursor = {many}.iterator();")
            self.page.open("while (cursor.hasNext())", "loop", over)
            self.page.put(f"{of.name} {each} = cursor.next();")
        elif shape < 0.9:
            self.page.open(f"while (attempts < {rng.randint(2, 9)})", "loop")
            self.page.put("attempts++;")
            each = self.rng.choice(("latest", "candidate"))
        else:
            text, facts = self.query(of, None)
            self.page.open(f"for ({of.name} {each} : {text})", "loop", over, *facts)
        self.about(each, of, 1, rng.choice((1, 2, 2, 3, 3, 4)))
        self.page.close()
        self.taken = saved

    def text_variable(self) -> None:
        name = self.name("summary", "message", "body", "csv", "html", "report")
        self.strings.append(name)
        self.page.put(f"String {name} = {self.rng.choice((repr(''), self.literal()))};")

    def declare(self) -> None:
        rng = self.rng
        of = rng.choice(SOBJECTS)
        kind = rng.randrange(5)
        if kind == 0:
            self.text_variable()
        elif kind == 1:
            name = self.list_name(of)
            self.page.put(f"List<{of.name}> {name} = new List<{of.name}>();")
            self.lists.append(_Listed(name, of))
        elif kind == 2:
            self.page.put(f"Set<Id> {self.name('ids', 'ownerIds', 'seen', 'parentIds')} = new Set<Id>();")
        elif kind == 3:
            self.page.put(f"{rng.choice(('Integer', 'Decimal'))} {self.name('total', 'count', 'attempts')} = 0;")
        else:
            self.id_variable()

    def aside(self) -> None:
        """What would be a finding in a loop, written where it is fine."""
        rng = self.rng
        own = [known.name for known in self.lists if not known.name.startswith("Trigger.")]
        listed = rng.choice(own or ["changed"])
        of = rng.choice(SOBJECTS)
        kind = rng.randrange(5 if self.in_trigger else 6)  # the first of a trigger's batch is a finding, never an aside
        if kind == 0:
            self.debug(f"{listed}.size()")
        elif kind in (1, 2):
            self.write(listed)
        elif kind == 3:
            target = rng.choice(self.strings) if self.strings else "message"
            self.page.put(f"{target} += {self.literal()} + String.join(parts, ', ');")
        elif kind == 4:
            self.page.open(f"if ({listed}.isEmpty())", "if")
            if self.chance(0.5):
                self.debug(self.literal())
            else:
                self.page.put("return;" if self.in_trigger else f"log({self.literal()});")
            self.page.close()
        else:
            kind_of_record = next((known.of for known in self.lists if known.name == listed), of).name
            self.page.put(f"{kind_of_record} {self.name('latest', 'first')} = {listed}[0];")

    def body(self, loops: int) -> None:
        """A method's or trigger's body around *loops* loops."""
        rng = self.rng
        preamble: list[Callable[[], None]] = [self.declare, self.load, self.declare]
        for number in range(loops):
            for _ in range(rng.choice((0, 1, 1, 2)) if number else rng.choice((1, 2, 2, 3))):
                rng.choice(preamble)()
            if not self.strings and self.chance(0.3):
                self.text_variable()
            if self.chance(0.12):
                self.comment()
            if self.chance(0.15):
                self.page.open("if (enabled)", "if")
                self.loop()
                self.page.close()
            else:
                self.loop()
            if self.chance(0.6):
                self.aside()
        if not loops:
            for _ in range(rng.randint(1, 3)):
                rng.choice((self.declare, self.load, self.aside, self.comment))()

    # Whole files

    def method(self) -> None:
        rng = self.rng
        self.taken, self.lists, self.strings = set(), [], []
        of = rng.choice(SOBJECTS)
        parameters = []
        if self.chance(0.6):
            name = self.list_name(of)
            self.lists.append(_Listed(name, of))
            parameters.append(f"List<{of.name}> {name}")
        if self.chance(0.35):
            parameters.append(f"{rng.choice(('Set<Id>', 'List<Id>'))} {self.name('ids', 'recordIds', 'ownerIds')}")
        if self.chance(0.15):
            parameters.append("Id recordId")
        verb, aspect = rng.choice(VERBS), rng.choice((of.plural.capitalize(), *ASPECTS))
        returns = self.chance(0.25)
        kind = "String" if returns else "void"
        self.page.open(f"{rng.choice(METHOD_MODIFIERS)} {kind} {verb}{aspect}({', '.join(parameters)})", "method")
        self.body(rng.choice((0, 1, 1, 1, 2)))
        if returns:
            result = rng.choice((*self.strings, "String.join(parts, ', ')"))
            self.page.put(f"return {result};")
        self.page.close()

    def apex_class(self) -> None:
        rng = self.rng
        of = rng.choice(SOBJECTS)
        stem = rng.choice((of.name.removesuffix("__c"), *WORDS))
        word = rng.choice([word for word in WORDS if word != stem])
        role = rng.choice([role for role in ROLES if role != word])
        self.page.open(f"{rng.choice(CLASS_MODIFIERS)} {stem}{word}{role}", "class")
        if self.chance(0.3):
            constant = rng.choice(("DEFAULT_OWNER", "QUEUE_ID", "RECORD_TYPE", "FALLBACK"))
            if self.bad():
                self.page.put(f"private static final String {constant} = {self.record_id(of)};", "record id")
            else:
                self.page.put(f"private static final String {constant} = {self.literal()};")
            self.page.put("")
        for number in range(rng.choice((1, 1, 2, 2))):
            if number:
                self.page.put("")
            self.method()
        self.page.close()

    def trigger(self) -> None:
        rng = self.rng
        self.in_trigger = True
        of = rng.choice(SOBJECTS)
        stem = of.name.removesuffix("__c")
        events = rng.choice(TRIGGER_EVENTS)
        self.page.open(f"trigger {stem}{rng.choice(('Trigger', 'Rules', 'Guard'))} on {of.name} ({events})", "method")
        batch = rng.choice(("Trigger.new", "Trigger.new", "Trigger.old"))
        if self.bad() or self.bad():
            each = self.item_name(of)
            first = f"{batch}{rng.choice(('[0]', '[0]', '.get(0)'))}"
            self.page.put(f"{of.name} {each} = {first};", "one record of the batch")
            self.about(each, of, 1, rng.randint(2, 4))
        else:
            shape = rng.randrange(4)
            if shape == 0:
                name = self.name("records", "batch", "incoming")
                self.page.put(f"List<{of.name}> {name} = {batch};")
                self.lists.append(_Listed(name, of))
            elif shape == 1:
                self.page.put(f"Integer size = {batch}.size();")
            else:
                self.lists.append(_Listed(batch, of))
        self.body(rng.choice((1, 1, 2)))
        self.page.close()


def sample(seed: int) -> Example:
    """The example of *seed*: the same on every machine, process and Python version.

    A draft that is too short, too long or too broken is thrown away and written anew from the same stream.
    """
    rng = random.Random(seed)
    while True:
        author = _Author(rng)
        if rng.random() < 0.22:
            author.trigger()
        else:
            author.apex_class()
        page = author.page
        findings = tuple(Finding(rule, n) for n, note in enumerate(page.notes, 1) for rule in note.rules)
        if MIN_LINES <= len(page.lines) <= MAX_LINES and len(findings) <= MAX_FINDINGS:
            return Example(seed, "\n".join(page.lines) + "\n", findings, tuple(page.notes))


def main() -> None:
    """Print the class of one seed, as the model reads it, and its answer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which class; 0 to 9999 are held out of the training")
    example = sample(parser.parse_args().seed)
    print(example.numbered)
    print(example.answer)


if __name__ == "__main__":
    main()
