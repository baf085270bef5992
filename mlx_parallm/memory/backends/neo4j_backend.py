"""Neo4jBackend: memories in a Neo4j database.

(:MemoryCollection)-[:HOLDS]->(:MemoryDocument)-[:CONSISTS_OF]->(:MemoryPart); one
transaction a document.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

from mlx_parallm.memory.backends.backend import (
    MemoryBackend,
    StoredCollection,
    failed,
    need,
    parts_of,
)
from mlx_parallm.memory.backends.store_errors import MissingPayloadError
from mlx_parallm.memory.document import Document

_CONSTRAINTS = (
    "CREATE CONSTRAINT memory_collection IF NOT EXISTS "
    "FOR (c:MemoryCollection) REQUIRE c.name IS UNIQUE",
    "CREATE CONSTRAINT memory_document IF NOT EXISTS "
    "FOR (d:MemoryDocument) REQUIRE d.uid IS UNIQUE",
)
_BUMP = (
    "MERGE (c:MemoryCollection {name: $name}) "
    "SET c.version = coalesce(c.version, 0) + 1, c.present = $present RETURN c.version AS version"
)
_REMOVE = (
    "MATCH (:MemoryCollection {name: $name})-[:HOLDS]->(d:MemoryDocument) "
    "WHERE $id IS NULL OR d.id = $id "
    "OPTIONAL MATCH (d)-[:CONSISTS_OF]->(p:MemoryPart) "
    "WITH collect(DISTINCT d) AS documents, collect(p) AS parts "
    "FOREACH (p IN parts | DETACH DELETE p) FOREACH (d IN documents | DETACH DELETE d) "
    "RETURN size(documents) AS count"
)
_ADD = (
    "MATCH (c:MemoryCollection {name: $name}) "
    "CREATE (c)-[:HOLDS]->(:MemoryDocument "
    "{uid: $uid, id: $id, header: $header, place: c.version})"
)
_ADD_PART = (
    "MATCH (d:MemoryDocument {uid: $uid}) "
    "CREATE (d)-[:CONSISTS_OF]->(:MemoryPart {place: $place, content: $content})"
)
_PAYLOAD = (
    "MATCH (:MemoryDocument {uid: $uid})-[:CONSISTS_OF]->(p:MemoryPart) "
    "RETURN p.content AS content ORDER BY p.place"
)
_ALL = (
    "MATCH (c:MemoryCollection) WHERE c.present "
    "OPTIONAL MATCH (c)-[:HOLDS]->(d:MemoryDocument) WITH c, d ORDER BY d.place "
    "RETURN c.name AS name, c.version AS version, collect(d {.header, .id, .uid}) AS documents "
    "ORDER BY name"
)


class Neo4jBackend(MemoryBackend):
    """Memories in Neo4j.

    Args:
        url: neo4j:// or bolt://, with user and password, or those in NEO4J_USER
            and NEO4J_PASSWORD.

    Raises:
        MemoryStoreError: the server does not answer.
        InvalidRequestError: the package neo4j is not installed.
    """

    name = "neo4j"
    shared = True

    def __init__(self, url: str) -> None:
        try:
            import neo4j
            from neo4j.exceptions import DriverError, Neo4jError
        except ImportError:
            raise need("neo4j", "neo4j", "Neo4j") from None
        self._errors = (DriverError, Neo4jError)
        parts = urlsplit(url)
        user = parts.username or os.environ.get("NEO4J_USER", "neo4j")
        password = parts.password or os.environ.get("NEO4J_PASSWORD", "")
        place = parts.netloc.rpartition("@")[2]
        self._driver: Any = neo4j.GraphDatabase.driver(
            f"{parts.scheme}://{place}", auth=(unquote(user), unquote(password))
        )
        for constraint in _CONSTRAINTS:
            self._run(lambda tx, text=constraint: tx.run(text).consume(), starting=True)

    def put(self, document: Document, payload: bytes) -> int:
        name, uid = document.collection, document.uid

        def add(tx: Any) -> int:
            version = tx.run(_BUMP, name=name, present=True).single()["version"]
            tx.run(_REMOVE, name=name, id=document.id).consume()
            header = document.header()
            tx.run(_ADD, name=name, uid=uid, id=document.id, header=header).consume()
            for place, part in enumerate(parts_of(payload)):
                tx.run(_ADD_PART, uid=uid, place=place, content=part).consume()
            return int(version)

        return int(self._run(add))

    def payload(self, uid: str) -> bytes:
        parts = self._run(lambda tx: [bytes(row["content"]) for row in tx.run(_PAYLOAD, uid=uid)])
        if not parts:
            raise MissingPayloadError(uid)
        return b"".join(parts)

    def collections(self) -> list[StoredCollection]:
        def read(tx: Any) -> list[tuple[str, int, list[dict[str, str]]]]:
            return [(row["name"], row["version"], row["documents"]) for row in tx.run(_ALL)]

        return [
            StoredCollection(
                name, version, tuple(Document.from_header(collection=name, **row) for row in rows)
            )
            for name, version, rows in self._run(read)
        ]

    def delete_document(self, collection: str, document_id: str) -> bool:
        def delete(tx: Any) -> bool:
            count = tx.run(_REMOVE, name=collection, id=document_id).single()["count"]
            if count:
                tx.run(_BUMP, name=collection, present=True).consume()
            return bool(count)

        return bool(self._run(delete))

    def delete_collection(self, collection: str) -> bool:
        def delete(tx: Any) -> bool:
            text = "MATCH (c:MemoryCollection {name: $name}) WHERE c.present RETURN c"
            if tx.run(text, name=collection).single() is None:
                return False
            tx.run(_REMOVE, name=collection, id=None).consume()
            # The number stays, so that a new collection of that name has other versions.
            tx.run(_BUMP, name=collection, present=False).consume()
            return True

        return bool(self._run(delete))

    def close(self) -> None:
        self._driver.close()

    def _run(self, work: Any, *, starting: bool = False) -> Any:
        try:
            with self._driver.session() as session:
                return session.execute_write(work)
        except self._errors as error:
            raise failed("Neo4j", error, starting) from error
