#!/usr/bin/env bash
# Creates a private certificate authority, and a certificate for the registry's names. Run it again to
# renew the certificate: running servers load the new one by themselves. The authority's key is in
# FOLDER.authority, which no server and no container needs; give ca.pem to the clients.
#
#   private-ca.sh FOLDER registry.example 10.0.0.7
#
#   flerm serve --tls-cert FOLDER/server.pem --tls-key FOLDER/server.key ...
#   GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=FOLDER/ca.pem flerm doctor --registry grpcs://registry.example:50051
set -euo pipefail
umask 077
[ $# -ge 2 ] || { echo "usage: private-ca.sh FOLDER NAME-OR-ADDRESS..." >&2; exit 2; }
folder=${1%/}
shift
mkdir -p "$folder" "$folder.authority"
authority=$(cd "$folder.authority" && pwd)
cd "$folder"
for file in ca.key ca.srl; do  # where an earlier version of this script had them
  [ ! -e "$file" ] || mv "$file" "$authority/$file"
done

names=""
for name in "$@"; do
  case $name in
    *:*) kind=IP ;;
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  names="${names:+$names,}$kind:$name"
done

if [ ! -e "$authority/ca.key" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout "$authority/ca.key" -out ca.pem \
    -subj "/CN=FLeRM private authority" -addext "keyUsage=critical,keyCertSign,cRLSign" 2> /dev/null
fi
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key.new -out server.csr -subj "/CN=$1" 2> /dev/null
printf 'subjectAltName=%s\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' "$names" |
  openssl x509 -req -in server.csr -CA ca.pem -CAkey "$authority/ca.key" -CAserial "$authority/ca.srl" -CAcreateserial -days 365 -extfile /dev/stdin -out server.pem.new 2> /dev/null
# The key first. Between the two moves key and certificate do not belong together, and a running
# server keeps the old pair.
mv server.key.new server.key
mv server.pem.new server.pem
chmod 644 ca.pem server.pem
rm -f server.csr
echo "$(pwd)/server.pem for $names, by $(pwd)/ca.pem"
