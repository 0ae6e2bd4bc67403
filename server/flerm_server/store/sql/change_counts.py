"""Triggers by which the database itself counts changes of runs, and recordings of tokens.

It counts the changes of each family's runs, and the recordings of each token. It does so by
triggers, because servers of an older version change recordings too and do not know of the counts.
`families.revision` counts what changes an answer about losses: recordings that start, end or are
deleted. Rows of measurements do not. `recording_counts` has a row for each `created_by` but the
empty one. The migration that makes the triggers has these texts from here: a change of them is a
migration of its own, with the old texts in the old one.
"""

from __future__ import annotations

WATCHED = "status, final_loss, lr, seed, role, variant, family_key, created_at"

SQLITE = (
    """CREATE TRIGGER recordings_inserted AFTER INSERT ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key = NEW.family_key;
    INSERT INTO recording_counts (created_by, recordings) SELECT NEW.created_by, 0
    WHERE NEW.created_by <> ''
    AND NOT EXISTS (SELECT 1 FROM recording_counts WHERE created_by = NEW.created_by);
    UPDATE recording_counts SET recordings = recordings + 1 WHERE created_by = NEW.created_by;
END""",
    """CREATE TRIGGER recordings_deleted AFTER DELETE ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key = OLD.family_key;
    UPDATE recording_counts SET recordings = recordings - 1 WHERE created_by = OLD.created_by;
END""",
    f"""CREATE TRIGGER recordings_updated AFTER UPDATE OF {WATCHED} ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key IN (OLD.family_key, NEW.family_key);
END""",
)

# Once for each statement: 20,000 changes of one family's row in one transaction would each leave a
# version of the row behind, and pass by all of them.
POSTGRES = (
    """CREATE FUNCTION flerm_recordings_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE families SET revision = revision + 1
    WHERE key IN (SELECT family_key FROM changed);
    INSERT INTO recording_counts AS known (created_by, recordings)
    SELECT created_by, count(*) FROM changed WHERE created_by <> ''
    GROUP BY created_by ORDER BY created_by
    ON CONFLICT (created_by) DO UPDATE SET recordings = known.recordings + EXCLUDED.recordings;
    RETURN NULL;
END $$""",
    """CREATE FUNCTION flerm_recordings_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE families SET revision = revision + 1
    WHERE key IN (SELECT family_key FROM changed);
    UPDATE recording_counts AS known SET recordings = known.recordings - gone.count
    FROM (SELECT created_by, count(*) AS count FROM changed GROUP BY created_by) AS gone
    WHERE gone.created_by = known.created_by;
    RETURN NULL;
END $$""",
    """CREATE FUNCTION flerm_recordings_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE families SET revision = revision + 1 WHERE key IN (OLD.family_key, NEW.family_key);
    RETURN NULL;
END $$""",
    "CREATE TRIGGER recordings_inserted AFTER INSERT ON recordings REFERENCING NEW TABLE AS changed"
    " FOR EACH STATEMENT EXECUTE FUNCTION flerm_recordings_inserted()",
    "CREATE TRIGGER recordings_deleted AFTER DELETE ON recordings REFERENCING OLD TABLE AS changed"
    " FOR EACH STATEMENT EXECUTE FUNCTION flerm_recordings_deleted()",
    f"CREATE TRIGGER recordings_updated AFTER UPDATE OF {WATCHED} ON recordings"
    " FOR EACH ROW EXECUTE FUNCTION flerm_recordings_updated()",
)
