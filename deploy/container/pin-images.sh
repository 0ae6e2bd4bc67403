#!/bin/sh
# Writes the present digests of the images that the container files build on to `.env` beside this
# script. compose.yaml reads that file, and builds nothing without it. Run the script again to take
# newer images; a build in between takes the same ones.
set -eu
cd "$(dirname "$0")"
pin() {
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "docker.io/library/$2")
  case $digest in
    sha256:????????????????????????????????????????????????????????????????) echo "$1=$digest" ;;
    *) echo "$2: '$digest' is no digest; is the image's registry reachable?" >&2; exit 1 ;;
  esac
}
{
  pin PYTHON_DIGEST python:3.13-slim
  pin POSTGRES_DIGEST postgres:17
  pin NGINX_DIGEST nginx:1.29
} > .env.new
mv .env.new .env
