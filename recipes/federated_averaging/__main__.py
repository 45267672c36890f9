from recipes.federated_averaging import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.federated_averaging"):
    main()
