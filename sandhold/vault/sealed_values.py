"""Every encrypted value of the vault, in a stable order, for rotation."""

from __future__ import annotations

from sqlalchemy import select, update

from sandhold.security.holders import SealedRow
from sandhold.vault.parts import Parts
from sandhold.vault.schema import SEALED_COLUMNS


class SealedValues:
    """All columns of SEALED_COLUMNS, one after the other, each by the ids of its rows."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def sealed_batch(self, after: str = "", limit: int = 100) -> list[SealedRow]:
        """The next values after the cursor, at most `limit`; none once all have been given.

        What is stored meanwhile may come or not: it is sealed under the key that is the primary one by then. Raises
        VaultError.
        """
        label, _, last = after.partition(":")
        found: list[SealedRow] = []
        async with self._parts.database.reading() as reading:
            for each in SEALED_COLUMNS.values():
                if each.label < label or len(found) >= limit:
                    continue
                key = each.table.columns.id
                wanted = select(each.table).where(each.column.is_not(None)).order_by(key).limit(limit - len(found))
                if each.label == label:
                    wanted = wanted.where(key > last)
                for row in (await reading.execute(wanted)).mappings():
                    cursor = f"{each.label}:{row['id']}"
                    found.append(SealedRow(cursor, each.place(dict(row)), bytes(row[each.column.name])))
        return found

    async def replace_sealed(self, row: SealedRow, new: bytes) -> bool:
        """Put the same value, wrapped anew, in place of the one that was read; whether that one was still there.

        Nothing else of the record changes. Raises VaultError.
        """
        label, _, record = row.cursor.partition(":")
        column = SEALED_COLUMNS[label]
        is_it = (column.table.columns.id == record) & (column.column == row.sealed)
        async with self._parts.database.writing() as writing:
            done = await writing.execute(update(column.table).where(is_it).values({column.column.name: new}))
        return done.rowcount == 1
