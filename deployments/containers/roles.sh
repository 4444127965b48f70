#!/bin/sh
# Runs once, on a new cluster: creates two databases, each with the roles that it needs.
# rollout_owner  owns the tables: `rollout db upgrade | restore`; only it can drop a trigger
# rollout        the flows, the API and the command line: reads and writes rows, cannot change tables or triggers
# rollout_reader the exporter, routers, dumps: reads
# prefect        owns Prefect's database, with no access to the other one
set -eu
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="${POSTGRES_DB:-$POSTGRES_USER}" \
    --set=owner="$ROLLOUT_OWNER_PASSWORD" --set=app="$ROLLOUT_PASSWORD" \
    --set=reader="$ROLLOUT_READER_PASSWORD" --set=prefect="$PREFECT_DATABASE_PASSWORD" <<'SQL'
CREATE ROLE rollout_owner LOGIN PASSWORD :'owner';
CREATE ROLE rollout LOGIN PASSWORD :'app';
CREATE ROLE rollout_reader LOGIN PASSWORD :'reader';
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE DATABASE rollout OWNER rollout_owner;
CREATE DATABASE prefect OWNER prefect;
REVOKE ALL ON DATABASE rollout, prefect FROM PUBLIC;
GRANT CONNECT ON DATABASE rollout TO rollout, rollout_reader;
\connect rollout
ALTER SCHEMA public OWNER TO rollout_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO rollout, rollout_reader;
-- for all future tables
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO rollout;
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT ON TABLES TO rollout_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT, USAGE ON SEQUENCES TO rollout;
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT ON SEQUENCES TO rollout_reader;
SQL
