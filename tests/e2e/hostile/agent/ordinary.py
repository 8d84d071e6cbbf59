"""An agent that does its work and nothing else, to see that it still can."""

import json
import urllib.request

with urllib.request.urlopen("https://open.internal/public/ordinary", timeout=10) as answer:
    print(json.dumps({"ordinary": answer.status, **json.loads(answer.read())}))
