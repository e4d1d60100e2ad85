"""http.client and urllib against the server at sys.argv[1], port sys.argv[2]."""
import gzip, http.client, sys, time, urllib.error, urllib.request
from email.parser import BytesParser
from email.utils import parsedate_to_datetime

checks = 0


def check(holds):
    global checks
    assert holds, f"check {checks}"
    checks += 1


host, port = sys.argv[1], int(sys.argv[2])
connection = http.client.HTTPConnection(host, port, timeout=20)


def get(path, method="GET", **fields):
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


# All of these on one connection.
response, body = get("/dir/a%20b.txt")
etag = response.headers["ETag"]
check((response.status, body) == (200, b"0123456789"))
check(abs(parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()) < 5)
check(get("/dir/a%20b.txt", If_None_Match=etag)[0].status == 304)
response, body = get("/dir/page.html", Accept_Encoding="gzip")
check((response.headers["Content-Encoding"], gzip.decompress(body)) == ("gzip", b"<p>gzipp"))
# A multipart body, read as the mail parser reads one.
response, body = get("/dir/a%20b.txt", Range="bytes=0-1,4-5,-1")
head = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
parts = BytesParser().parsebytes(head + body).get_payload()
check([part.get_payload() for part in parts] == ["01", "45", "9"])
check(get("/dir/", "HEAD")[0].status == 200)
first = connection.sock
check(get("/dir/")[0].status == 200 and connection.sock is first)
try:
    urllib.request.urlopen(f"http://{host}:{port}/none", timeout=20)
except urllib.error.HTTPError as error:
    check(error.code == 404)
print(checks, "checks")
