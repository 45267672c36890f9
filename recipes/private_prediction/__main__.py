from recipes.private_prediction import main

main()
