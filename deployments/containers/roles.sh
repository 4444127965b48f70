#!/bin/sh
# Runs once, on a new cluster: two databases, and for each just the roles that it needs.
# rollout_owner  owns the tables: `rollout db upgrade | restore`; only it may drop a trigger
# rollout        the flows, the API, owners in a shell: reads and writes rows, and cannot change what guards them
# rollout_reader the exporter and routers: reads
# prefect        owns Prefect's database, and sees no other
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
-- for every table to come, none of which is there yet
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO rollout;
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT ON TABLES TO rollout_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE rollout_owner IN SCHEMA public GRANT SELECT, USAGE ON SEQUENCES TO rollout;
SQL
