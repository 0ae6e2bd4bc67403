BEGIN TRANSACTION;
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE attempts (
	"key" INTEGER NOT NULL, 
	recording_key INTEGER NOT NULL, 
	id VARCHAR(36) NOT NULL, 
	number INTEGER NOT NULL, 
	resume_at BIGINT NOT NULL, 
	started_at BIGINT NOT NULL, 
	status TEXT NOT NULL, 
	finished_at BIGINT, 
	world_size INTEGER NOT NULL, 
	versions JSON NOT NULL, 
	visible_below BIGINT NOT NULL, 
	last_step BIGINT NOT NULL, 
	created_by TEXT DEFAULT '' NOT NULL, 
	after_id VARCHAR(36) DEFAULT '' NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY ("key"), 
	CONSTRAINT uq_attempts_recording_key_number UNIQUE (recording_key, number), 
	CONSTRAINT uq_attempts_recording_key_id UNIQUE (recording_key, id), 
	CONSTRAINT fk_attempts_recording_key FOREIGN KEY(recording_key) REFERENCES recordings ("key")
);
INSERT INTO "attempts" VALUES(1,1,'5f0b6b1e-6f3a-4f64-9d0e-0c1a2b3c4d5e',1,0,1795902243237759,'completed',1795902243288566,1,'{}',9223372036854775807,101,'','');
CREATE TABLE families (
	"key" INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	blocks JSON NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	created_by TEXT NOT NULL, 
	revision BIGINT DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_families PRIMARY KEY ("key"), 
	CONSTRAINT uq_families_name UNIQUE (name)
);
INSERT INTO "families" VALUES(1,'team/resmlp','','[]',1795902243237759,1795902243237759,'',2);
CREATE TABLE kinds (
	"key" INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	optimizer TEXT NOT NULL, 
	settings TEXT NOT NULL, 
	estimator TEXT NOT NULL, 
	CONSTRAINT pk_kinds PRIMARY KEY ("key"), 
	CONSTRAINT uq_kinds_digest UNIQUE (digest)
);
INSERT INTO "kinds" VALUES(1,'e3e1633971c5d67f070cff7644a986875855b1eaf20a2ff0ff19c55961e1e6c1','Adam','(betas=[0.9, 0.999])','example');
CREATE TABLE measurements (
	attempt_key INTEGER NOT NULL, 
	step BIGINT NOT NULL, 
	fslr BLOB NOT NULL, 
	loss DOUBLE, 
	learning_rate DOUBLE, 
	tokens BIGINT, 
	measured_at BIGINT, 
	committed_at BIGINT NOT NULL, 
	extra BLOB, 
	CONSTRAINT pk_measurements PRIMARY KEY (attempt_key, step), 
	CONSTRAINT fk_measurements_attempt_key FOREIGN KEY(attempt_key) REFERENCES attempts ("key")
);
INSERT INTO "measurements" VALUES(1,1,X'0000803F0000003F0000C07F',NULL,NULL,NULL,NULL,1795902243277567,NULL);
INSERT INTO "measurements" VALUES(1,101,X'0000CA4200004A420000C07F',NULL,NULL,NULL,NULL,1795902243277567,NULL);
CREATE TABLE parameter_lists (
	"key" INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	count INTEGER NOT NULL, 
	content JSON NOT NULL, 
	CONSTRAINT pk_parameter_lists PRIMARY KEY ("key"), 
	CONSTRAINT uq_parameter_lists_digest UNIQUE (digest)
);
INSERT INTO "parameter_lists" VALUES(1,'36f248198262d1bd4846770dcc5165f0e50a43704f4414a70560aab6c8e639d7',3,'{"names": ["layers.0.weight", "layers.1.weight", "readout.weight"], "shapes": [[4, 4], [4, 4], [2, 4]], "bands": ["feed-forward", "feed-forward", "readout"]}');
CREATE TABLE recording_counts (
	created_by TEXT NOT NULL, 
	recordings BIGINT NOT NULL, 
	CONSTRAINT pk_recording_counts PRIMARY KEY (created_by)
);
CREATE TABLE recording_tags (
	recording_key INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_recording_tags PRIMARY KEY (recording_key, name), 
	CONSTRAINT fk_recording_tags_recording_key FOREIGN KEY(recording_key) REFERENCES recordings ("key")
);
INSERT INTO "recording_tags" VALUES(1,'a','b');
CREATE TABLE recordings (
	"key" INTEGER NOT NULL, 
	id VARCHAR(36) NOT NULL, 
	family_key INTEGER NOT NULL, 
	parameters_key INTEGER NOT NULL, 
	parameter_count INTEGER NOT NULL, 
	lr DOUBLE NOT NULL, 
	seed BIGINT NOT NULL, 
	role TEXT NOT NULL, 
	variant TEXT NOT NULL, 
	optimizer TEXT NOT NULL, 
	optimizer_config JSON NOT NULL, 
	config JSON NOT NULL, 
	estimator JSON NOT NULL, 
	world_size INTEGER NOT NULL, 
	versions JSON NOT NULL, 
	targets_digest TEXT NOT NULL, 
	targets_sources JSON NOT NULL, 
	status TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	rows BIGINT NOT NULL, 
	first_step BIGINT NOT NULL, 
	last_step BIGINT NOT NULL, 
	final_loss DOUBLE, 
	final_step BIGINT, 
	tokens BIGINT, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	lease_until BIGINT NOT NULL, 
	created_by TEXT NOT NULL, 
	kind_key INTEGER, 
	remarks JSON DEFAULT '[]' NOT NULL, 
	CONSTRAINT pk_recordings PRIMARY KEY ("key"), 
	CONSTRAINT uq_recordings_id UNIQUE (id), 
	CONSTRAINT fk_recordings_family_key FOREIGN KEY(family_key) REFERENCES families ("key"), 
	CONSTRAINT fk_recordings_parameters_key FOREIGN KEY(parameters_key) REFERENCES parameter_lists ("key")
);
INSERT INTO "recordings" VALUES(1,'5f0b6b1e-6f3a-4f64-9d0e-0c1a2b3c4d5e',1,1,3,0.0003,0,'base','plain','Adam','{"betas": [0.9, 0.999], "amsgrad": false}','{}','{"name": "example", "samples": 1, "warmup": 8, "every": 100, "start": 1, "output_weight": "", "output_bias": ""}',1,'{}','','[]','completed',1,2,1,101,0.5,NULL,NULL,1795902243237759,1795902243288566,1795902243288566,1795902363277567,'',1,'[]');
CREATE TABLE schema_support (
	oldest_server VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_schema_support PRIMARY KEY (oldest_server)
);
INSERT INTO "schema_support" VALUES('0001');
CREATE TABLE sessions (
	"key" INTEGER NOT NULL, 
	id VARCHAR(12) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	token_key INTEGER NOT NULL, 
	expires_at BIGINT NOT NULL, 
	CONSTRAINT pk_sessions PRIMARY KEY ("key"), 
	CONSTRAINT uq_sessions_id UNIQUE (id), 
	CONSTRAINT fk_sessions_token_key FOREIGN KEY(token_key) REFERENCES tokens ("key")
);
CREATE TABLE tokens (
	"key" INTEGER NOT NULL, 
	id VARCHAR(12) NOT NULL, 
	name TEXT NOT NULL, 
	scope TEXT NOT NULL, 
	family TEXT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	revoked_at BIGINT, 
	CONSTRAINT pk_tokens PRIMARY KEY ("key"), 
	CONSTRAINT uq_tokens_id UNIQUE (id)
);
CREATE INDEX ix_recordings_created_at_key ON recordings (created_at, "key");
CREATE INDEX ix_recordings_family_key_role_variant_lr ON recordings (family_key, role, variant, lr);
CREATE INDEX ix_recordings_family_key_created_at_key ON recordings (family_key, created_at, "key");
CREATE INDEX ix_recordings_created_by ON recordings (created_by);
CREATE INDEX ix_recordings_family_key_role_variant_kind_key_status_lr ON recordings (family_key, role, variant, kind_key, status, lr);
CREATE INDEX ix_recording_tags_name_value ON recording_tags (name, value);
CREATE TRIGGER recordings_inserted AFTER INSERT ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key = NEW.family_key;
    INSERT INTO recording_counts (created_by, recordings) SELECT NEW.created_by, 0
    WHERE NEW.created_by <> '' AND NOT EXISTS (SELECT 1 FROM recording_counts WHERE created_by = NEW.created_by);
    UPDATE recording_counts SET recordings = recordings + 1 WHERE created_by = NEW.created_by;
END;
CREATE TRIGGER recordings_deleted AFTER DELETE ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key = OLD.family_key;
    UPDATE recording_counts SET recordings = recordings - 1 WHERE created_by = OLD.created_by;
END;
CREATE TRIGGER recordings_updated AFTER UPDATE OF status, final_loss, lr, seed, role, variant, family_key, created_at ON recordings BEGIN
    UPDATE families SET revision = revision + 1 WHERE key IN (OLD.family_key, NEW.family_key);
END;
COMMIT;
